"""A pool of rendered training scenes with per-patch labels, written once and memory-mapped."""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from allrounder.demo.scenes import (
    COLOURS,
    IMAGE_SIZE,
    NUM_PATCHES,
    SHAPES,
    SIZES,
    Scene,
    SceneSplit,
    draw_scene,
    object_centres,
    patch_pixels,
    render,
    scene_rng,
)

logger = logging.getLogger(__name__)
CHUNK = 200
# A patch is called after an object that owns at least this share of its 256 pixels.
LABEL_PIXELS = 28


@dataclass(frozen=True, kw_only=True)
class PatchLabels:
    """What each patch shows, [scenes, 196]; background is the last colour, shape and size."""

    colour: NDArray[np.int8]
    shape: NDArray[np.int8]
    size: NDArray[np.int8]
    centre: NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class ScenePool:
    """Rendered scenes [scenes, 224, 224, 3] and their labels."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int8]

    @property
    def num_objects(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self.labels[:, 3].sum(axis=1, dtype=np.int64)
        return counts

    def patch_labels(self, indexes: NDArray[np.int64]) -> PatchLabels:
        colour, shape, size, centre = self.labels[indexes].transpose(1, 0, 2)
        return PatchLabels(colour=colour, shape=shape, size=size, centre=centre)


def pool_scene(split: SceneSplit, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """The scene with this number, and its random stream positioned for rendering."""
    rng = scene_rng(split, seed, index)
    return draw_scene(rng), rng


def label_patches(scene: Scene) -> NDArray[np.int8]:
    """Colour, shape, size class and centre flag of every patch: [4, 196]."""
    pixels = patch_pixels(scene)
    owner, shown = pixels.argmax(axis=0), pixels.max(axis=0) >= LABEL_PIXELS
    rows = np.empty((4, NUM_PATCHES), np.int8)
    classes = (
        [COLOURS.index(item.colour) for item in scene.objects],
        [SHAPES.index(item.shape) for item in scene.objects],
        [SIZES.index(item.size) for item in scene.objects],
    )
    for row, (values, background) in enumerate(
        zip(classes, (len(COLOURS), len(SHAPES), len(SIZES)), strict=True)
    ):
        rows[row] = np.where(shown, np.array(values, np.int8)[owner], background)
    rows[3] = object_centres(scene).any(axis=0)
    return rows


def load_pool(folder: Path, *, num_scenes: int, seed: int, workers: int) -> ScenePool:
    """Open the pool, rendering it first if this folder does not hold it yet."""
    folder.mkdir(parents=True, exist_ok=True)
    images_path = folder / f"images-{seed}-{num_scenes}.npy"
    labels_path = folder / f"labels-{seed}-{num_scenes}.npy"
    if not labels_path.exists():
        _write_pool(images_path, labels_path, num_scenes, seed, workers)
    return ScenePool(images=np.load(images_path, mmap_mode="r"), labels=np.load(labels_path))


def _write_pool(
    images_path: Path, labels_path: Path, num_scenes: int, seed: int, workers: int
) -> None:
    shape = (num_scenes, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.lib.format.open_memmap(images_path, "w+", np.uint8, shape)
    labels = np.empty((num_scenes, 4, NUM_PATCHES), np.int8)
    chunks = [
        (seed, start, min(start + CHUNK, num_scenes)) for start in range(0, num_scenes, CHUNK)
    ]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        results = zip(chunks, executor.map(_render_chunk, chunks), strict=True)
        for (_, start, stop), (pixels, marks) in tqdm(
            results, total=len(chunks), desc="scenes", unit="chunk"
        ):
            images[start:stop], labels[start:stop] = pixels, marks
    images.flush()
    partial = labels_path.with_suffix(".partial.npy")
    np.save(partial, labels)
    partial.replace(labels_path)
    logger.info("rendered %d scenes into %s", num_scenes, images_path.parent)


def _render_chunk(chunk: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    seed, start, stop = chunk
    pixels = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    marks = np.empty((stop - start, 4, NUM_PATCHES), np.int8)
    for index in range(start, stop):
        scene, rng = pool_scene(SceneSplit.TRAIN, seed, index)
        pixels[index - start] = render(scene, rng)
        marks[index - start] = label_patches(scene)
    return pixels, marks
