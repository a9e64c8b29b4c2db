"""Scenes are legal, and ownership tells where each object lies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from allrounder.demo.scenes import (
    COLOURS,
    GRID,
    IMAGE_SIZE,
    LARGE_RATIOS,
    MAX_OBJECTS,
    MAX_RATIO,
    MIN_RATIO,
    NUM_PATCHES,
    PATCH_SIZE,
    SHAPES,
    SMALL_RATIOS,
    Scene,
    SceneObject,
    SceneSplit,
    draw_scene,
    object_patches,
    owner_mask,
    render,
    scene_rng,
)

SCENES = [draw_scene(scene_rng(SceneSplit.TEST, 0, index)) for index in range(150)]


def assert_apart(a: SceneObject, b: SceneObject) -> None:
    reach = (a.size_ratio + b.size_ratio) / 2
    assert abs(a.x - b.x) > reach or abs(a.y - b.y) > reach


def test_scenes_hold_one_to_twelve_known_shapes() -> None:
    for scene in SCENES:
        assert 1 <= len(scene.objects) <= MAX_OBJECTS
        assert all(item.colour in COLOURS and item.shape in SHAPES for item in scene.objects)


def test_sizes_are_in_range_and_clearly_small_or_large() -> None:
    for scene in SCENES:
        for item in scene.objects:
            assert MIN_RATIO <= item.size_ratio <= MAX_RATIO
            low, high = SMALL_RATIOS if item.size == "small" else LARGE_RATIOS
            assert low <= item.size_ratio <= high


def test_objects_do_not_overlap_and_lie_inside_the_image() -> None:
    for scene in SCENES:
        for item in scene.objects:
            assert item.size_ratio / 2 <= min(item.x, item.y, 1 - item.x, 1 - item.y)
        for a, b in combinations(scene.objects, 2):
            assert_apart(a, b)


@pytest.mark.parametrize("plain", [True, False])
def test_the_background_is_plain_or_cluttered_as_asked(plain: bool) -> None:
    for index in range(20):
        rng = scene_rng(SceneSplit.TEST, 1, index)
        scene = draw_scene(rng, num_objects=2, plain=plain)
        image = render(scene, rng)
        pixels = image[owner_mask(scene) < 0]
        base = (pixels == scene.background.rgb).all(axis=1).mean()
        assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert image.dtype == np.uint8
        assert scene.background.plain is plain
        assert not plain or base > 0.95


def test_the_same_stream_draws_the_same_scene_and_other_splits_draw_others() -> None:
    first, again = (draw_scene(scene_rng(SceneSplit.TRAIN, 0, 7)) for _ in range(2))
    assert first == again
    assert first != draw_scene(scene_rng(SceneSplit.HELD_OUT, 0, 7))


def test_every_object_covers_the_patch_of_its_centre_and_no_far_patch() -> None:
    for scene in SCENES[:60]:
        covered = object_patches(scene)
        assert covered.shape == (len(scene.objects), NUM_PATCHES)
        assert covered.any(axis=1).all()
        for item, patches in zip(scene.objects, covered, strict=True):
            reach = item.size_ratio / 2 * IMAGE_SIZE + PATCH_SIZE
            for patch in np.flatnonzero(patches):
                x, y = (patch % GRID + 0.5) * PATCH_SIZE, (patch // GRID + 0.5) * PATCH_SIZE
                assert abs(x - item.x * IMAGE_SIZE) <= reach
                assert abs(y - item.y * IMAGE_SIZE) <= reach


def test_a_quarter_width_square_on_the_grid_covers_exactly_its_patches() -> None:
    side = 4 * PATCH_SIZE / IMAGE_SIZE
    square = SceneObject(colour="red", shape="square", size_ratio=side, x=side / 2, y=side / 2)
    scene = Scene(objects=(square,), background=SCENES[0].background)
    expected = {row * GRID + column for row in range(4) for column in range(4)}
    assert set(np.flatnonzero(object_patches(scene)[0])) == expected
