"""Made-up folders of every benchmark in its official format, with right and wrong answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SIDE = 8


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (seed * 37 % 256, seed * 91 % 256, 40)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def lines(path: Path, values: list[Any]) -> Path:
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


@dataclass(frozen=True, kw_only=True)
class ScorerCase:
    """A benchmark whose answers are lines.

    Attributes:
        make: fills a folder with labels and images and returns what `--labels` is given.
        figure: where in the report the accuracy stands, its best value 1 or `best`.
        by_prompt: ids repeat, so that lines need the question as well.
    """

    name: str
    make: Callable[[Path], Path]
    ids: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    figure: tuple[str, ...]
    best: float = 1.0
    prompts: tuple[str, ...] = ()

    def line(self, place: int, text: Any) -> dict[str, Any]:
        prompt = {"prompt": self.prompts[place]} if self.prompts else {}
        return {"question_id": self.ids[place], "text": text, **prompt}

    def value(self, report: dict[str, Any]) -> float:
        found: Any = report
        for key in self.figure:
            found = found[key]
        return float(found) / self.best


def _pope(folder: Path) -> Path:
    rows = [("a.png", "Is there a cat?", "yes"), ("a.png", "Is there a dog?", "no")]
    rows += [("b.png", "Is there a car?", "yes"), ("b.png", "Is there a hat?", "no")]
    lines(
        folder / "coco_pope_popular.json",
        [
            {"question_id": n, "image": image, "text": text, "label": label}
            for n, (image, text, label) in enumerate(rows, 1)
        ],
    )
    for n, name in enumerate(("a.png", "b.png")):
        write(folder / "val2014" / name, png(n))
    return folder


def _mme(folder: Path) -> Path:
    ask = "Please answer yes or no."
    for task in ("existence", "code_reasoning"):
        text = "".join(
            f"{n}.png\tIs it {task} {n}? {ask}\tYes\n{n}.png\tIs it not {task} {n}? {ask}\tNo\n"
            for n in (1, 2)
        )
        write(folder / "eval_tool" / "Your_Results" / f"{task}.txt", text)
        for n in (1, 2):
            write(folder / task / "images" / f"{n}.png", png(n))
    return folder / "eval_tool" / "Your_Results"


_MME = tuple((task, n) for task in ("existence", "code_reasoning") for n in (1, 1, 2, 2))
_MME_PROMPTS = tuple(
    f"Is it {'not ' * (place % 2)}{task} {n}?\nAnswer the question using a single word or phrase."
    for place, (task, n) in enumerate(_MME)
)


def _mmbench(folder: Path) -> Path:
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
    image = base64.b64encode(png(3)).decode()
    rows = f'7\t"Which\none?"\tLook.\tred\tblue\tgreen\t\tB\tcolour\t{image}\n'
    rows += '1000007\t"Which\none?"\tLook.\tblue\tgreen\tred\t\tA\tcolour\t7\n'
    rows += f"9\tWhat?\t\tcat\tdog\t\t\tA\tkind\t{image}\n"
    rows += "1000009\tWhat?\t\tdog\tcat\t\t\tB\tkind\t9\n"
    return write(folder / "mmbench_dev.tsv", header + rows)


def _scienceqa(folder: Path) -> Path:
    def problem(answer: int, image: str | None) -> dict[str, Any]:
        choices = ["iron", "gold", "tin"]
        return {
            "question": "Metal?",
            "choices": choices,
            "answer": answer,
            "hint": "",
            "image": image,
        }

    problems = {"3": problem(0, None), "5": problem(2, "image.png"), "8": problem(1, "image.png")}
    write(folder / "problems.json", problems | {"9": problem(1, None)})
    write(folder / "pid_splits.json", {"train": ["9"], "test": ["3", "5", "8"]})
    for n in (5, 8):
        write(folder / "images" / "test" / str(n) / "image.png", png(n))
    return folder


def _aokvqa(folder: Path) -> Path:
    rows = [
        {
            "question_id": f"q{n}",
            "image_id": n,
            "question": "What for?",
            "choices": ["ride", "eat", "sleep", "read"],
            "correct_choice_idx": n,
            "direct_answers": ["eat"] * 2 + ["ride"] * 8,
            "difficult_direct_answer": n == 2,
        }
        for n in range(3)
    ]
    for n in range(3):
        write(folder / "val2017" / f"{n:012d}.jpg", png(n))
    return write(folder / "aokvqa_v1p0_val.json", rows)


def _seed(folder: Path) -> Path:
    rows = [
        {
            "question_id": str(n),
            "question_type_id": 1 + n % 2,
            "data_type": "video" if n == 3 else "image",
            "data_id": f"{n}.png",
            "question": "How many?",
            "answer": "BCAD"[n],
            **{f"choice_{letter}": f"{letter}{n}" for letter in "abcd"},
        }
        for n in range(4)
    ]
    for n in range(3):
        write(folder / "SEED-Bench-image" / f"{n}.png", png(n))
    names = {"Scene": 1, "Counting": 2}
    return write(folder / "SEED-Bench.json", {"questions": rows, "question_type": names})


def _gqa(folder: Path) -> Path:
    rows = {
        str(n): {"question": "Colour?", "imageId": f"i{n}", "answer": answer}
        for n, answer in enumerate(("red", "yes", "table"))
    }
    for n in range(3):
        write(folder / "images" / f"i{n}.jpg", png(n))
    return write(folder / "testdev_balanced_questions.json", rows)


def _textvqa(folder: Path) -> Path:
    rows = [
        {"question_id": 50 + n, "image_id": "img", "question": question, "answers": [answer] * 10}
        for n, (question, answer) in enumerate(
            [("What brand?", "Dakota"), ("Which number?", "two"), ("Who won?", "the Reds")]
        )
    ]
    write(folder / "train_images" / "img.jpg", png())
    return write(folder / "TextVQA_0.5.1_val.json", {"data": rows})


def _easy(folder: Path) -> Path:
    rows = [["what shape?", "circle", 4], ["is it red?", "no", 4], ["what color?", "teal", 5]]
    for n in (4, 5):
        write(folder / "test" / "images" / f"{n}.png", png(n))
    return write(folder / "test_questions.json", rows)


CASES = (
    ScorerCase(
        name="pope",
        make=_pope,
        ids=("1", "2", "3", "4"),
        right=("Yes", "No, there is none.", "yes", "It is not."),
        wrong=("No", "Yes", "There is no car", "Yes, no doubt. not"[:3]),
        figure=("popular", "accuracy"),
    ),
    ScorerCase(
        name="mme",
        make=_mme,
        ids=tuple(f"{task}/{n}.png" for task, n in _MME),
        prompts=_MME_PROMPTS,
        right=("Yes", "No") * 4,
        wrong=("no.", "YES") * 4,
        figure=("perception",),
        best=200,
    ),
    ScorerCase(
        name="mmbench",
        make=_mmbench,
        ids=("7", "1000007", "9", "1000009"),
        right=("B", "A. blue", "(A)", "cat"),
        wrong=("A", "B", "no idea", "A"),
        figure=("circular",),
    ),
    ScorerCase(
        name="scienceqa",
        make=_scienceqa,
        ids=("3", "5", "8"),
        right=("A", "The answer is C.", "B. gold"),
        wrong=("B", "D", "FAILED"),
        figure=("all",),
    ),
    ScorerCase(
        name="aokvqa",
        make=_aokvqa,
        ids=("q0", "q1", "q2"),
        right=("A", "eat", "C."),
        wrong=("D", "read", "A or C"),
        figure=("multiple_choice",),
    ),
    ScorerCase(
        name="seed-bench",
        make=_seed,
        ids=("0", "1", "2"),
        right=("B", "C. c1", "a2"),
        wrong=("A", "none of them", "E"),
        figure=("accuracy",),
    ),
    ScorerCase(
        name="gqa",
        make=_gqa,
        ids=("0", "1", "2"),
        right=("red", "Yes.", " table"),
        wrong=("dark red", "no", "tables"),
        figure=("accuracy",),
    ),
    ScorerCase(
        name="textvqa",
        make=_textvqa,
        ids=("50", "51", "52"),
        right=("dakota.", "2", "Reds"),
        wrong=("Dakotas", "3", "blues"),
        figure=("accuracy",),
    ),
    ScorerCase(
        name="easy-vqa",
        make=_easy,
        ids=("0", "1", "2"),
        right=("Circle", "no.", "teal"),
        wrong=("square", "yes", "blue"),
        figure=("accuracy",),
    ),
)


def llava_wild(folder: Path) -> Path:
    rows = [("conv", 0), ("detail", 1), ("complex", 2)]
    questions = [
        {"question_id": n, "image": f"{n}.png", "text": f"Describe {n}.", "category": kind}
        for kind, n in rows
    ]
    lines(folder / "questions.jsonl", questions)
    references = [{"question_id": n, "text": "a tall green hill"} for _, n in rows]
    lines(folder / "answers_gpt4.jsonl", references)
    for _, n in rows:
        write(folder / "images" / f"{n}.png", png(n))
    return folder / "questions.jsonl"


def mm_vet(folder: Path) -> Path:
    write(folder / "images" / "v1_0.png", png())
    needs = (["rec"], ["ocr", "math"], ["ocr"])
    rows = {
        f"v1_{n}": {
            "imagename": "v1_0.png",
            "question": "What?",
            "answer": "2<AND>cats<OR>kittens",
            "capability": capability,
        }
        for n, capability in enumerate(needs)
    }
    return write(folder / "mm-vet.json", rows)
