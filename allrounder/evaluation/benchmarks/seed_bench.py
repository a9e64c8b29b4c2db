"""SEED-Bench: multiple choice over nine dimensions of understanding an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from allrounder.errors import InvalidField
from allrounder.evaluation.benchmarks.choices import MultipleChoice, asked
from allrounder.evaluation.grading import GivenAnswer, LabelledQuestion, read_answers
from allrounder.evaluation.local import ScoreFiles, by_type, mean
from allrounder.evaluation.official_files import read_json, read_records, unusable
from allrounder.evaluation.reading import LETTERS

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


class SeedBench(MultipleChoice):
    """Li et al., SEED-Bench (2307.16125): the questions about images, videos left out.

    Metric: accuracy over all questions, and `tasks`, by kind of question.

    Files: `SEED-Bench.json` ({"questions": [...], "question_type": {name: id}}), images in
    `SEED-Bench-image/`. Labels may also be lines with question_id and gt_answer; answers that carry
    gt_answer need no file of labels. Answers: lines with question_id and prediction or text.
    """

    name = "seed-bench"
    files = "SEED-Bench.json and SEED-Bench-image/"
    label_files: ClassVar[tuple[str, ...]] = ("SEED-Bench.json", "*SEED*.json", "*.jsonl")
    image_folders: ClassVar[tuple[str, ...]] = ("SEED-Bench-image", "images", ".")

    @classmethod
    def score(cls, files: ScoreFiles) -> dict[str, Any]:
        return super().score(replace(files, labels=files.labels or files.answers))

    @classmethod
    def labelled(cls, path: Path, *, param: str) -> list[LabelledQuestion]:
        records = [record.value for record in read_records(path, param=param)]
        if len(records) == 1 and isinstance(records[0], dict) and "questions" in records[0]:
            return _official(path, param=param)
        rows: dict[str, LabelledQuestion] = {}
        for value in records:
            label = value.get("gt_answer", value.get("answer")) if isinstance(value, dict) else None
            if label in tuple(LETTERS[:4]) and "question_id" in value:
                name = str(value["question_id"])
                rows.setdefault(
                    name, LabelledQuestion(id=name, label=str(label), choices=tuple(LETTERS[:4]))
                )
        if not rows:
            raise InvalidField(f"{path}: no line has question_id and gt_answer", param=param)
        return list(rows.values())

    @classmethod
    def given(cls, answers: Path) -> list[GivenAnswer]:
        return [
            GivenAnswer(place=answer.place, id=answer.id, text=answer.text)
            for answer in read_answers(answers)
        ]

    @classmethod
    def figures(
        cls, rows: Sequence[LabelledQuestion], texts: Sequence[str | None]
    ) -> dict[str, Any]:
        grades = cls.grades(rows, texts)
        tasks = {name: value for name, value in by_type(rows, grades).items() if name}
        return {"accuracy": mean(grades)} | ({"tasks": tasks} if tasks else {})


def _official(path: Path, *, param: str) -> list[LabelledQuestion]:
    found = read_json(path, param=param)
    names = {str(number): name for name, number in found.get("question_type", {}).items()}
    rows = []
    for place, question in enumerate(found["questions"], 1):
        if not isinstance(question, dict) or question.get("answer") not in tuple(LETTERS[:4]):
            raise unusable(path, f"question {place} has no answer A to D", param=param)
        if question.get("data_type", "image") != "image":
            continue
        choices = tuple(str(question.get(name, "")) for name in _CHOICES)
        kind = str(question.get("question_type_id", ""))
        rows.append(
            LabelledQuestion(
                id=str(question.get("question_id", place)),
                prompt=asked(str(question.get("question", "")), choices),
                type=names.get(kind, kind),
                label=question["answer"],
                choices=choices,
                image=str(question.get("data_id", "")),
            )
        )
    return rows
