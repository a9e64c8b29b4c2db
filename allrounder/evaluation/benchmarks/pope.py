"""POPE: is an object in the image, yes or no."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from allrounder.errors import InvalidField
from allrounder.evaluation.grading import LabelledQuestion, Problems, join
from allrounder.evaluation.local import LocalBenchmark, ScoreFiles
from allrounder.evaluation.official_files import read_rows, unusable
from allrounder.evaluation.reading import ONE_WORD, bare_question, pope_says

_SPLITS = ("adversarial", "popular", "random")


class Pope(LocalBenchmark):
    """Li et al., Evaluating Object Hallucination in Large Vision-Language Models (2305.10355).

    Protocol: yes-or-no questions in three splits (random, popular, adversarial absent objects),
    figures per split. Positive is "yes": accuracy = (TP + TN) / n, precision = TP / (TP + FP),
    recall = TP / (TP + FN), f1 = 2PR / (P + R), yes_ratio = predicted yes / n, 0 where a
    denominator is. The answer is read by the published script's rule (`pope_says`), since its
    figures depend on it; but a missing or empty answer is neither yes nor no: wrong, a false
    negative where the label is yes, never a false positive.

    Files: `coco_pope_<split>.json` (JSON lines: question_id, image, text, label), images in
    `val2014/`, `images/` or beside them. Answers: lines with question_id and text, in the order of
    LLaVA's question file where ids restart in every split. With a question file the exam is what
    it asks: labels that it leaves out are `unasked`, its questions without a label `unlabelled`.
    """

    name = "pope"
    files = "coco_pope_{adversarial,popular,random}.json and val2014/*.jpg"
    label_files: ClassVar[tuple[str, ...]] = ("*pope*.json", "*pope*.jsonl")
    image_folders: ClassVar[tuple[str, ...]] = ("val2014", "images", ".")

    def rows(self) -> list[LabelledQuestion]:
        self.label_file()
        return self.labelled(self.data, param="data")

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        if files.labels is None:
            raise InvalidField("is needed: the folder of coco_pope_*.json", param="labels")
        problems = Problems()
        rows = cls.labelled(files.labels, param="labels")
        if files.questions is not None:
            rows = cls.exam_of(files.questions, rows, problems)
        return cls.report(rows, join(rows, cls.given(files.answers), problems), problems)

    @classmethod
    def exam_of(
        cls, questions: Path, rows: Sequence[LabelledQuestion], problems: Problems
    ) -> list[LabelledQuestion]:
        """Joined by split, image and question; ids become those of the question file."""
        left: dict[tuple[str, str, str], list[LabelledQuestion]] = defaultdict(list)
        for row in rows:
            left[row.type, row.image, bare_question(row.text)].append(row)
        splits = {row.type for row in rows}
        asked = []
        for line in read_rows(questions, ("question_id", "text"), param="questions"):
            split = str(line.get("category", ""))
            if len(splits) == 1 and split not in splits:
                split = next(iter(splits))
            same = left[split, str(line.get("image", "")), bare_question(str(line["text"]))]
            if same:
                asked.append(replace(same.pop(0), id=str(line["question_id"])))
            else:
                problems.add("unlabelled", str(line["question_id"]))
        if not asked:
            raise unusable(questions, "asks nothing that the labels know", param="questions")
        for row in (row for found in left.values() for row in found):
            problems.add("unasked", row.id)
        return asked

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        paths = [path]
        if path.is_dir():
            paths = sorted(found for pattern in cls.label_files for found in path.glob(pattern))
            paths = _official_first(paths)
        if not paths:
            raise unusable(path, "has no coco_pope_*.json", param=param)
        return [row for found in paths for row in _split(found, param=param)]

    @staticmethod
    def grade(row: LabelledQuestion, answer: str) -> float:
        return float(pope_says(answer) == row.label)

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        pairs: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        for row, text in zip(rows, texts, strict=True):
            pairs[row.type].append((row.label, None if text is None else pope_says(text)))
        return {split: _confusion(found) for split, found in sorted(pairs.items())}


def _confusion(pairs: Sequence[tuple[str, str | None]]) -> dict[str, float]:
    hits = sum(label == said == "yes" for label, said in pairs)
    rejections = sum(label == said == "no" for label, said in pairs)
    positive = sum(label == "yes" for label, _ in pairs)
    said_yes = sum(said == "yes" for _, said in pairs)
    return {
        "accuracy": (hits + rejections) / len(pairs),
        "precision": hits / said_yes if said_yes else 0.0,
        "recall": hits / positive if positive else 0.0,
        "f1": 2 * hits / (said_yes + positive) if said_yes + positive else 0.0,
        "yes_ratio": said_yes / len(pairs),
    }


def _official_first(paths: Sequence[Path]) -> list[Path]:
    """A split that has its official file is read from that alone."""
    official = {path for path in paths if path.stem == f"coco_pope_{_split_of(path)}"}
    covered = {_split_of(path) for path in official}
    return [path for path in paths if path in official or _split_of(path) not in covered]


def _split_of(path: Path) -> str:
    return next((split for split in _SPLITS if split in path.stem), path.stem)


def _split(path: Path, *, param: str) -> list[LabelledQuestion]:
    rows = []
    for place, value in enumerate(read_rows(path, ("text", "label"), param=param), 1):
        label = str(value["label"]).strip().lower()
        if label not in ("yes", "no"):
            raise unusable(path, f"row {place} is labelled {label!r}, not yes or no", param=param)
        text = str(value["text"])
        rows.append(
            LabelledQuestion(
                id=str(value.get("question_id", place)),
                text=text,
                prompt=f"{text}\n{ONE_WORD}",
                type=str(value.get("category", _split_of(path))),
                label=label,
                image=str(value.get("image", "")),
            )
        )
    return rows
