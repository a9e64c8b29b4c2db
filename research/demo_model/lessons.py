"""The curriculum of the decoder's training: scenes, questions and dropped tokens of each step."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from allrounder.demo.questions import TYPES, Question, ask_questions
from allrounder.demo.scene_pool import ScenePool, pool_scene
from allrounder.demo.scenes import NUM_PATCHES, Scene, SceneSplit, object_marks
from research.demo_model.packing import Packed, pack
from research.demo_model.tokens import tokenise

EASY_TYPES = ("exist", "count", "colour", "shape", "size", "corner", "where")
HARD_TYPES = ("count", "position", "compare", "describe")
RELATION_TYPES = ("position", "compare")
NUMBER_TYPES = ("count", "compare")
MAX_EASY_OBJECTS = 5


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Shares of the training after which a stage ends, and the shape of a batch."""

    easy_scenes_until: float = 0.08
    easy_types_until: float = 0.13
    informed_until: float = 0.25
    hard_types_from: float = 0.38
    drill_from: float = 0.46
    drill_until: float = 0.58
    grounded_until: float = 0.8
    batch_size: int = 8
    max_blocks: int = 6
    per_type: int = 3
    yes_no_relations: int = 3
    # Further questions of each type that counts, for a model that has learned the rest.
    per_number_type: int = 0
    max_layer_drop: float = 0.15
    # Whether visual tokens are hidden from the decoder while it learns.
    drops_tokens: bool = True

    @classmethod
    def continued(cls, **changes: Any) -> Curriculum:
        """For a model that has been through the first stages: hard types at once."""
        stages: dict[str, Any] = {
            "easy_scenes_until": 0,
            "easy_types_until": 0,
            "informed_until": 0,
            "hard_types_from": 0,
            "drill_from": 0,
            "drill_until": 0.12,
        }
        return cls(**(stages | changes))

    def drills(self, progress: float) -> bool:
        """Whether relations are practised on easy scenes with every object in sight."""
        return self.drill_from <= progress < self.drill_until


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One batch: scene numbers, their packed questions, kept visual tokens and skipped layers."""

    scenes: NDArray[np.int64]
    packed: Packed
    kept: Tensor
    skip: frozenset[int]


def draw_lesson(
    pool: ScenePool,
    tokenizer: PreTrainedTokenizerFast,
    curriculum: Curriculum,
    *,
    seed: int,
    step: int,
    progress: float,
    num_layers: int,
    scene_seed: int,
) -> Lesson:
    """The batch of this step; depends on its arguments only, so that a resumed run repeats it."""
    rng = np.random.default_rng([seed, step])
    candidates = np.arange(len(pool.images))
    drill = curriculum.drills(progress)
    if drill or progress < curriculum.easy_scenes_until:
        candidates = np.flatnonzero(pool.num_objects <= MAX_EASY_OBJECTS)
    indexes = np.sort(rng.choice(candidates, curriculum.batch_size, replace=False))
    asker = Random(int(rng.integers(2**62)))
    rows, marks = [], []
    for index in indexes:
        scene, _ = pool_scene(SceneSplit.TRAIN, scene_seed, int(index))
        questions = _draw_questions(scene, asker, curriculum, progress)
        rows.append(tokenise(tokenizer, questions))
        marks.append(object_marks(scene))
    shown = np.stack([each[:, 0].any(axis=0) for each in marks])
    return Lesson(
        scenes=indexes,
        packed=pack(rows, marks, max_blocks=curriculum.max_blocks),
        kept=_draw_kept(
            rng, shown, curriculum, informed_only=drill or progress < curriculum.informed_until
        ),
        skip=_draw_skip(rng, num_layers, curriculum.max_layer_drop * min(1.0, 2 * progress)),
    )


def _draw_questions(
    scene: Scene, asker: Random, curriculum: Curriculum, progress: float
) -> list[Question]:
    """Easy types first, then all alike, a drill in relations, and at last more of the hard."""
    count = curriculum.per_type
    if progress < curriculum.easy_types_until:
        questions = ask_questions(scene, asker, per_type=count, types=EASY_TYPES)
    elif progress < curriculum.hard_types_from:
        questions = ask_questions(scene, asker, per_type=count)
    elif curriculum.drills(progress):
        questions = ask_questions(scene, asker, per_type=3 * count, types=RELATION_TYPES)
        questions += _ask_yes_no(scene, asker, 3 * curriculum.yes_no_relations)
        questions += ask_questions(scene, asker, per_type=1)
    else:
        others = [name for name in TYPES if name not in HARD_TYPES]
        questions = ask_questions(scene, asker, per_type=count + 1, types=HARD_TYPES)
        questions += ask_questions(scene, asker, per_type=(count + 1) // 2, types=others)
        questions += _ask_yes_no(scene, asker, curriculum.yes_no_relations)
        if curriculum.per_number_type:
            questions += ask_questions(
                scene, asker, per_type=curriculum.per_number_type, types=NUMBER_TYPES
            )
    asker.shuffle(questions)
    return questions


def _ask_yes_no(scene: Scene, asker: Random, count: int) -> list[Question]:
    """More of what is learned last: whether a relation that the question names holds."""
    drawn = ask_questions(scene, asker, per_type=3 * count, types=("position",))
    return [question for question in drawn if question.answers[0] in ("yes", "no")][:count]


def _draw_kept(
    rng: np.random.Generator,
    shown: NDArray[np.bool_],
    curriculum: Curriculum,
    *,
    informed_only: bool,
) -> Tensor:
    """Sorted visual tokens to keep: objects and some background at first, then any, then all."""
    kind = rng.random()
    if not curriculum.drops_tokens or (kind >= 0.8 and not informed_only):
        return torch.arange(NUM_PATCHES).expand(len(shown), -1)
    if informed_only:
        informed, count = True, int(rng.uniform(70, 110))
    elif kind < 0.4:
        informed, count = True, int(rng.uniform(60, 130))
    else:
        informed, count = False, int(NUM_PATCHES * rng.uniform(0.3, 0.9))
    priority = rng.random(shown.shape) + (shown if informed else 0.0)
    kept = np.sort(np.argsort(-priority, axis=1)[:, :count], axis=1)
    return torch.from_numpy(kept)


def _draw_skip(rng: np.random.Generator, num_layers: int, ratio: float) -> frozenset[int]:
    late = range(num_layers // 2, num_layers)
    return frozenset(index for index in late if rng.random() < ratio)
