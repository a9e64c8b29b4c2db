"""Held-out scenes and questions, and accuracy by question type with standard errors.

Training scenes come from random streams that start with Split.TRAIN, these from Split.HELD_OUT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from app.demo.pool import pool_scene
from app.demo.questions import TYPES, Question, ask_questions
from app.demo.scenes import Scene, Split, draw_scene, render


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One held-out scene, its picture and its questions."""

    scene: Scene
    image: NDArray[np.uint8]
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Share of right answers; its standard error takes the questions of a picture as one draw."""

    name: str
    accuracy: float
    standard_error: float
    num_questions: int


def draw_exams(
    num_scenes: int, *, seed: int = 0, per_type: int = 1, big_single: bool = False
) -> list[Exam]:
    """Scene i is the same whatever the number of scenes; big_single: one large shape, plain."""
    exams = []
    for index in range(num_scenes):
        scene, rng = pool_scene(Split.HELD_OUT, seed, index)
        while big_single and (len(scene.objects) > 1 or scene.objects[0].size != "large"):
            scene = draw_scene(rng, num_objects=1, plain=True)
        image = render(scene, rng)
        questions = ask_questions(scene, Random(f"{seed}-{index}"), per_type=per_type)
        exams.append(Exam(scene=scene, image=image, questions=tuple(questions)))
    return exams


def score(
    questions: Sequence[Question], pictures: Sequence[int], right: Sequence[bool]
) -> list[Score]:
    """Overall first, then one row a type; `pictures` tells which picture each question is about."""
    types = np.array([question.type for question in questions])
    clusters, hits = np.array(pictures), np.array(right, dtype=float)
    rows = [_score("overall", clusters, hits)]
    for name in TYPES:
        chosen = types == name
        if chosen.any():
            rows.append(_score(name, clusters[chosen], hits[chosen]))
    return rows


def _score(name: str, clusters: NDArray[np.int64], hits: NDArray[np.float64]) -> Score:
    residual = np.bincount(clusters, weights=hits - hits.mean())
    return Score(
        name=name,
        accuracy=float(hits.mean()),
        standard_error=float(np.sqrt((residual**2).sum()) / len(hits)),
        num_questions=len(hits),
    )
