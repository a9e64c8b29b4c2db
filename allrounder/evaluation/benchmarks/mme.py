"""MME: fourteen tasks of perception and cognition, two yes-or-no questions an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from allrounder.core import ImageInput
from allrounder.errors import InvalidField
from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, Problems, join, renamed
from allrounder.evaluation.local import LocalBenchmark, ScoreFiles
from allrounder.evaluation.official_files import read_text, unusable
from allrounder.evaluation.reading import ONE_WORD, YES_OR_NO, bare_question, mme_says

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_SUFFIXES = ("jpg", "png", "jpeg")


class Mme(LocalBenchmark):
    """Fu et al., MME (2306.13394).

    Protocol: a task scores 100 x (acc + acc+): acc is the share of questions answered right, acc+
    that of images with both right; perception sums ten tasks, cognition four. The answer is read
    by the official tool's rule (`mme_says`: yes or no within its first four characters); one that
    is neither is wrong.

    Files: label folder of `<task>.txt` (image, question, Yes or No, by tabs), or the release's
    `<task>/questions_answers_YN/*.txt` or `<task>/*.txt` an image; images in `<task>/images/` or
    `<task>/`. Answers: LLaVA lines (question_id = task/image, the question in prompt), or the
    official folder of `<task>.txt` with the prediction as fourth column.

    The official tool grades such a folder by itself, over the images it holds, and the published
    scores are made so. That is what is given; what the label folder has besides is `missing`, what
    it lacks is `extra`, and where there is either, `strict` gives the figures over the label
    folder, missing answers wrong and extra ones left out. An image with one of its two questions
    answered, and a task without any answer, count as wrong in both.
    """

    name = "mme"
    files = "MME_Benchmark_release_version: <task>/ of images, and their questions with Yes or No"
    label_files: ClassVar[tuple[str, ...]] = ("eval_tool/Your_Results", ".")

    def rows(self) -> list[LabelledQuestion]:
        official = self.data / "eval_tool" / "Your_Results"
        return self.labelled(official if official.is_dir() else self.data, param="data")

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        if not path.is_dir():
            raise unusable(path, "expected a folder of <task>.txt", param=param)
        rows = [row for task in PERCEPTION + COGNITION for row in _task(path, task, param=param)]
        if not rows:
            raise unusable(path, f"has no {PERCEPTION[0]}.txt or any other task", param=param)
        return rows

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        if files.labels is None and not files.answers.is_dir():
            raise InvalidField("is needed: lines of answers carry no labels", param="labels")
        rows = [] if files.labels is None else cls.labelled(files.labels, param="labels")
        if files.questions is not None:
            rows = cls.in_order_of(files.questions, rows)
        if files.answers.is_dir():
            return cls._score_folder(rows, files.answers)
        problems = Problems()
        given = renamed(cls.given(files.answers), _canonical)
        return cls.report(rows, join(rows, given, problems), problems)

    @classmethod
    def _score_folder(cls, known: Sequence[LabelledQuestion], answers: Path) -> dict[str, Any]:
        problems = Problems()
        given, own = _four_columns(answers, problems)
        places = {(row.id, bare_question(row.text)) for row in known}
        foreign = [row for row in own if (row.id, bare_question(row.text)) not in places]
        rows = [*known, *foreign]
        texts = join(rows, given, problems)
        for row in foreign if known else []:
            problems.add("extra", row.id)
        seen = {answer.id for answer in given}
        begun = {row.type for row in own}
        official = [n for n, row in enumerate(rows) if row.id in seen or row.type not in begun]
        found = cls.report([rows[n] for n in official], [texts[n] for n in official], problems)
        if problems.found["missing"] or (known and foreign):
            found["strict"] = cls.figures(known, texts[: len(known)])
        return found

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return float(mme_says(answer) == row.label)

    @staticmethod
    def is_readable(_row: LabelledQuestion, answer: str, /) -> bool:
        return mme_says(answer) is not None

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row, grade in zip(rows, cls.grades(rows, texts), strict=True):
            images[row.type][row.group].append(grade)
        tasks = {task: _points(list(found.values())) for task, found in images.items()}
        return {
            "perception": sum(tasks.get(task, 0.0) for task in PERCEPTION),
            "cognition": sum(tasks.get(task, 0.0) for task in COGNITION),
            "tasks": tasks,
        }

    def image(self, name: str) -> ImageInput:
        """`name` is task/stem, or task/file where the labels give the suffix."""
        task, _, file = name.partition("/")
        names = [file, *(f"{file}.{suffix}" for suffix in _SUFFIXES)]
        for candidate in (f"{task}/{sub}{each}" for sub in ("images/", "") for each in names):
            if (self.data / candidate).is_file():
                return super().image(candidate)
        return super().image(name)


def _points(images: Sequence[Sequence[float]]) -> float:
    grades = [grade for image in images for grade in image]
    both = sum(len(image) > 1 and all(image) for image in images)
    return 100 * sum(grades) / len(grades) + 100 * both / len(images)


def _task(folder: Path, task: str, *, param: str) -> list[LabelledQuestion]:
    table = folder / f"{task}.txt"
    lines: list[tuple[Path, int, list[str]]]
    if table.is_file():
        lines = [(table, place, parts) for place, parts in _lines(table, param=param)]
    else:
        inner = folder / task / "questions_answers_YN"
        paths = sorted((inner if inner.is_dir() else folder / task).glob("*.txt"))
        lines = [
            (path, place, [path.stem, *parts])
            for path in paths
            for place, parts in _lines(path, param=param)
        ]
    rows = []
    for path, place, parts in lines:
        if len(parts) < 3 or parts[2].strip().lower() not in ("yes", "no"):
            raise unusable(path, f"line {place} is not image, question, Yes or No", param=param)
        rows.append(_row(task, *parts[:3]))
    return rows


def _lines(path: Path, *, param: str) -> list[tuple[int, list[str]]]:
    text = read_text(path, param=param).replace("\r\n", "\n")
    return [(n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _row(task: str, image: str, question: str, label: str) -> LabelledQuestion:
    asked = question.replace(YES_OR_NO, "").strip()
    return LabelledQuestion(
        id=f"{task}/{PurePosixPath(image).stem}",
        text=question,
        prompt=f"{asked}\n{ONE_WORD}",
        type=task,
        label=label.strip().lower(),
        group=f"{task}/{PurePosixPath(image).stem}",
        image=f"{task}/{image}",
    )


def _canonical(name: str) -> str:
    """artwork/images/1.jpg, as LLaVA names it, is artwork/1."""
    parts = PurePosixPath(name).parts
    return f"{parts[0]}/{PurePosixPath(name).stem}" if parts else name


def _four_columns(
    folder: Path, problems: Problems
) -> tuple[list[GivenAnswer], list[LabelledQuestion]]:
    """Answers, and the questions with the labels that stand beside them, each once."""
    given: list[GivenAnswer] = []
    rows: dict[tuple[str, str], LabelledQuestion] = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in PERCEPTION + COGNITION:
            problems.add("extra", path.name)
            continue
        for place, parts in _lines(path, param="answers"):
            where = f"{path.name} line {place}"
            if len(parts) != 4 or parts[2].strip().lower() not in ("yes", "no"):
                problems.add("malformed", where)
                continue
            row = _row(path.stem, *parts[:3])
            rows.setdefault((row.id, bare_question(row.text)), row)
            given.append(
                GivenAnswer(place=where, id=row.id, text=parts[3].strip(), prompt=row.text)
            )
    if not rows:
        raise unusable(folder, "has no <task>.txt of four columns", param="answers")
    return given, list(rows.values())
