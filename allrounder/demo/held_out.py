"""Held-out scenes and questions.

Training scenes come from random streams of SceneSplit.TRAIN, these from those of HELD_OUT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

from allrounder.demo.questions import Question, ask_questions
from allrounder.demo.scene_pool import pool_scene
from allrounder.demo.scenes import Scene, SceneSplit, draw_scene, render


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One held-out scene, its image and its questions."""

    scene: Scene
    image: NDArray[np.uint8]
    questions: tuple[Question, ...]


def draw_exams(
    num_scenes: int, *, seed: int = 0, per_type: int = 1, big_single: bool = False
) -> list[Exam]:
    """Scene i is the same whatever the number of scenes; big_single: one large shape, plain."""
    return [
        _exam(index, seed=seed, per_type=per_type, big_single=big_single)
        for index in range(num_scenes)
    ]


def draw_questions(
    num_questions: int, *, seed: int = 0, per_type: int = 1, big_single: bool = False
) -> list[Exam]:
    """Exams with so many questions together: the first ones, whatever their number."""
    exams: list[Exam] = []
    left = num_questions
    while left > 0:
        exam = _exam(len(exams), seed=seed, per_type=per_type, big_single=big_single)
        exams.append(replace(exam, questions=exam.questions[:left]))
        left -= len(exam.questions)
    return exams


def pick_scene(
    split: SceneSplit, seed: int, index: int, *, big_single: bool = False
) -> tuple[Scene, np.random.Generator]:
    """The scene with this number, and its random stream positioned for rendering."""
    scene, rng = pool_scene(split, seed, index)
    while big_single and (len(scene.objects) > 1 or scene.objects[0].size != "large"):
        scene = draw_scene(rng, num_objects=1, plain=True)
    return scene, rng


def _exam(index: int, *, seed: int, per_type: int, big_single: bool) -> Exam:
    scene, rng = pick_scene(SceneSplit.HELD_OUT, seed, index, big_single=big_single)
    image = render(scene, rng)
    questions = ask_questions(scene, Random(f"{seed}-{index}"), per_type=per_type)
    return Exam(scene=scene, image=image, questions=tuple(questions))
