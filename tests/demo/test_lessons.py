"""What a step teaches, with or without a part of the recipe: the same images and questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from allrounder.demo.scene_pool import ScenePool, load_pool
from allrounder.demo.scenes import NUM_PATCHES
from research.demo_model.lessons import Lesson, draw_lesson
from research.demo_model.tokens import train_tokenizer
from research.demo_model.training import DemoTrainingOptions, Part, ablated

NUM_LAYERS = 12
STEPS = range(12)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ScenePool:
    return load_pool(tmp_path_factory.mktemp("pool"), num_scenes=12, seed=0, workers=1)


@pytest.fixture(scope="module")
def lessons(pool: ScenePool):
    tokenizer = train_tokenizer(0, num_scenes=60)

    def draw(*parts: Part) -> list[Lesson]:
        curriculum = ablated(DemoTrainingOptions(output=Path(), work=Path()), parts).curriculum
        return [
            draw_lesson(
                pool,
                tokenizer,
                curriculum,
                seed=0,
                step=step,
                progress=0.9,
                num_layers=NUM_LAYERS,
                scene_seed=0,
            )
            for step in STEPS
        ]

    return draw


def test_the_recipe_hides_tokens_and_skips_layers(lessons) -> None:
    drawn = lessons()
    assert {each.kept.shape[1] == NUM_PATCHES for each in drawn} == {True, False}
    assert any(each.skip for each in drawn)
    assert all(min(each.skip, default=NUM_LAYERS) >= NUM_LAYERS // 2 for each in drawn)


def test_a_part_that_is_left_out_changes_nothing_else(lessons) -> None:
    full, dense = lessons(), lessons(Part.TOKEN_DROP, Part.LAYER_DROP)
    assert all(each.kept.shape[1] == NUM_PATCHES and not each.skip for each in dense)
    for ours, theirs in zip(full, dense, strict=True):
        assert (ours.scenes == theirs.scenes).all()
        assert ours.packed.questions == theirs.packed.questions


def test_the_cue_of_grounding_can_be_left_out() -> None:
    options = DemoTrainingOptions(output=Path(), work=Path())
    assert options.curriculum.grounded_until > 0
    assert ablated(options, [Part.GROUNDING]).curriculum.grounded_until == 0
