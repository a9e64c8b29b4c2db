"""Held-out procedural scenes: the embedded model's own task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from allrounder.core import ImageInput
from allrounder.demo.held_out import Exam, draw_exams
from allrounder.demo.questions import Question, is_correct, score_answer
from allrounder.errors import InvalidField
from allrounder.evaluation.benchmark import Item

_QUESTIONS_PER_SCENE = 10


@dataclass(frozen=True, kw_only=True)
class DemoItem(Item):
    """An item that knows the question it was made of."""

    source: Question


class DemoBenchmark:
    """One question of each type on every scene, in the order they are drawn."""

    name = "demo"

    def __init__(self, data: Path | None = None) -> None:
        if data is not None:
            raise InvalidField("the demo benchmark draws its own questions", param="data")

    def summary(self, items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
        """Descriptions by exact match; their grades are shares of the attributes named right."""
        exact = [
            is_correct(answer, item.source)
            for item, answer in zip(items, answers, strict=True)
            if isinstance(item, DemoItem) and item.source.described
        ]
        return {"describe (exact)": fmean(exact)} if exact else {}

    def items(self, *, limit: int, seed: int) -> Sequence[Item]:
        num_scenes = limit // (_QUESTIONS_PER_SCENE // 2) + 1
        exams = draw_exams(num_scenes, seed=seed)
        items = [
            _item(exam, question, cluster)
            for cluster, exam in enumerate(exams)
            for question in exam.questions
        ]
        return items[:limit]


def _item(exam: Exam, question: Question, cluster: int) -> DemoItem:
    return DemoItem(
        image=image_of(exam),
        question=question.text,
        type=question.type,
        cluster=cluster,
        grade=partial(_grade, question),
        source=question,
    )


def image_of(exam: Exam) -> ImageInput:
    height, width, _ = exam.image.shape
    rgb = exam.image.tobytes()
    digest = hashlib.sha256(rgb).hexdigest()
    return ImageInput(width=width, height=height, rgb=rgb, digest=digest)


def _grade(question: Question, answer: str) -> float:
    return score_answer(answer, question)
