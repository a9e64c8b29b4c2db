"""Procedural scenes: coloured shapes on a plain or cluttered background, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from allrounder.demo.backgrounds import Background, draw_background, paint_background

IMAGE_SIZE = 224
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_PATCHES = GRID * GRID

# Each colour is a mixture of a web colour and a softer shade, so that drawings and photos both fit.
SHADES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0), (215, 45, 40), (220, 20, 60)),
    "green": ((0, 128, 0), (40, 170, 60), (0, 190, 0)),
    "blue": ((0, 0, 255), (50, 80, 220), (30, 60, 200)),
    "yellow": ((255, 255, 0), (240, 220, 50), (250, 230, 20)),
    "purple": ((128, 0, 128), (150, 50, 180), (140, 30, 160)),
    "orange": ((255, 165, 0), (245, 140, 30), (255, 130, 0)),
    "cyan": ((0, 255, 255), (60, 205, 215), (30, 225, 235)),
    "white": ((255, 255, 255), (240, 240, 240), (250, 250, 250)),
    "gray": ((128, 128, 128), (120, 120, 120), (140, 140, 140)),
}
COLOURS = tuple(SHADES)
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")

MIN_RATIO, MAX_RATIO = 0.05, 0.45
SMALL_RATIOS = (MIN_RATIO, 0.13)
LARGE_RATIOS = (0.20, MAX_RATIO)
MAX_OBJECTS = 12
GAP = 0.025
MIN_CENTRE_DISTANCE = 0.09
MIN_CONTRAST = 85.0
# An object covers a patch when it owns at least this many of the patch's 256 pixels.
MIN_PIXELS = 16


class SceneSplit(IntEnum):
    """First entry of every seed: streams of different splits never share a random state."""

    TRAIN = 1
    HELD_OUT = 2
    TEST = 3


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape; x and y are its centre and size_ratio its width, as shares of the image width."""

    colour: str
    shape: str
    size_ratio: float
    x: float
    y: float

    @property
    def size(self) -> str:
        return "small" if self.size_ratio < LARGE_RATIOS[0] else "large"


@dataclass(frozen=True, kw_only=True)
class Scene:
    objects: tuple[SceneObject, ...]
    background: Background


def scene_rng(split: SceneSplit, seed: int, index: int) -> np.random.Generator:
    """The random stream of one scene; independent for every (split, seed, index)."""
    return np.random.default_rng([int(split), seed, index])


def draw_scene(
    rng: np.random.Generator, *, num_objects: int | None = None, plain: bool | None = None
) -> Scene:
    """Draw a legal scene: no overlap, sizes in range, colours unlike the background."""
    big_single = num_objects is None and rng.random() < 0.12
    if big_single:
        num_objects, plain = 1, True
    elif num_objects is None:
        num_objects = _draw_count(rng)
    if plain is None:
        plain = bool(rng.random() < 0.45)
    background = draw_background(rng, plain=plain)
    palette = [c for c in COLOURS if _contrast(c, background.rgb) >= MIN_CONTRAST]
    shapes = list(SHAPES)
    if num_objects >= 3 and rng.random() < 0.4:
        palette = list(rng.choice(palette, int(rng.integers(2, 5)), replace=False))
        shapes = list(rng.choice(shapes, int(rng.integers(2, 4)), replace=False))
    objects: list[SceneObject] = []
    for _ in range(num_objects):
        placed = _place(rng, objects, palette, shapes, num_objects, big_single)
        if placed is not None:
            objects.append(placed)
    return Scene(objects=tuple(objects), background=background)


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint the scene as an RGB array [224, 224, 3]; rng decides texture and exact shades."""
    image = paint_background(scene.background, IMAGE_SIZE, rng)
    canvas = Image.fromarray(image)
    for item in scene.objects:
        _paint(canvas, item, shade_of(item.colour, rng))
    pixels = np.asarray(canvas)
    if scene.background.noise > 0:
        noise = rng.standard_normal(pixels.shape[:2], dtype=np.float32) * scene.background.noise
        pixels = np.clip(pixels + noise[..., None], 0, 255).astype(np.uint8)
    return pixels


def shade_of(colour: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """A random shade that is called by this colour word."""
    shades = np.array(SHADES[colour], dtype=float)
    mixed = rng.dirichlet(np.full(len(shades), 0.5)) @ shades + rng.uniform(-8, 8, 3)
    red, green, blue = (int(v) for v in np.clip(mixed, 0, 255))
    return red, green, blue


def owner_mask(scene: Scene) -> NDArray[np.int16]:
    """Per pixel [224, 224] the index of the object seen there, -1 on the background."""
    mask = Image.new("I", (IMAGE_SIZE, IMAGE_SIZE), 0)
    draw = ImageDraw.Draw(mask)
    for index, item in enumerate(scene.objects):
        left, top = _corner(item)
        _draw_shape(draw, item.shape, left, top, item.size_ratio * IMAGE_SIZE, index + 1)
    return (np.asarray(mask) - 1).astype(np.int16)


def patch_pixels(scene: Scene) -> NDArray[np.int64]:
    """How many pixels each object owns in each patch: [objects, 196], patches row by row."""
    owner = owner_mask(scene).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE)
    indexes = np.arange(len(scene.objects)).reshape(-1, 1, 1, 1, 1)
    counts: NDArray[np.int64] = (owner[None] == indexes).sum(axis=(2, 4), dtype=np.int64)
    return counts.reshape(len(scene.objects), NUM_PATCHES)


def object_patches(scene: Scene) -> NDArray[np.bool_]:
    """Which of the 196 visual tokens show each object: bool [objects, 196], at least one a row.

    Patch p is row p // 14, column p % 14 of the 14 x 14 grid, in the order of the vision tower.
    """
    pixels = patch_pixels(scene)
    covered: NDArray[np.bool_] = pixels >= MIN_PIXELS
    covered[np.arange(len(pixels)), pixels.argmax(axis=1)] = True
    return covered


def object_centres(scene: Scene) -> NDArray[np.bool_]:
    """The visual token on which each object is centred: bool [objects, 196], one a row."""
    centres = np.zeros((len(scene.objects), NUM_PATCHES), bool)
    for index, item in enumerate(scene.objects):
        row, column = (int(v * IMAGE_SIZE) // PATCH_SIZE for v in (item.y, item.x))
        centres[index, row * GRID + column] = True
    return centres


def object_marks(scene: Scene) -> NDArray[np.bool_]:
    """object_patches and object_centres side by side: bool [objects, 2, 196]."""
    return np.stack([object_patches(scene), object_centres(scene)], axis=1)


def _draw_count(rng: np.random.Generator) -> int:
    return int(rng.integers(1, 4)) if rng.random() < 0.2 else int(rng.integers(2, MAX_OBJECTS + 1))


def _contrast(colour: str, rgb: tuple[int, int, int]) -> float:
    return min(math.dist(shade, rgb) for shade in SHADES[colour])


def _draw_ratio(rng: np.random.Generator, num_objects: int, large: bool) -> float:
    low, high = LARGE_RATIOS if large else SMALL_RATIOS
    if large and num_objects > 3:
        high = 0.34 if num_objects <= 6 else 0.27
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _place(
    rng: np.random.Generator,
    others: Sequence[SceneObject],
    palette: Sequence[str],
    shapes: Sequence[str],
    num_objects: int,
    large: bool,
) -> SceneObject | None:
    large = large or bool(rng.random() < min(0.5, 2.5 / num_objects))
    colour, shape = str(rng.choice(palette)), str(rng.choice(shapes))
    for attempt in range(40):
        ratio = _draw_ratio(rng, num_objects, large and attempt < 20)
        room = ratio / 2 + 0.01
        x, y = (float(v) for v in rng.uniform(room, 1 - room, 2))
        item = SceneObject(colour=colour, shape=shape, size_ratio=ratio, x=x, y=y)
        if all(_apart(item, other) for other in others):
            return item
    return None


def _apart(a: SceneObject, b: SceneObject) -> bool:
    reach = (a.size_ratio + b.size_ratio) / 2 + GAP
    boxes_apart = abs(a.x - b.x) >= reach or abs(a.y - b.y) >= reach
    return boxes_apart and math.hypot(a.x - b.x, a.y - b.y) >= MIN_CENTRE_DISTANCE


def _corner(item: SceneObject) -> tuple[float, float]:
    half = item.size_ratio / 2
    return (item.x - half) * IMAGE_SIZE, (item.y - half) * IMAGE_SIZE


def _paint(canvas: Image.Image, item: SceneObject, rgb: tuple[int, int, int]) -> None:
    """Anti-aliased: the mask is drawn four times larger and scaled down."""
    left, top = _corner(item)
    x0, y0 = math.floor(left), math.floor(top)
    side = math.ceil(item.size_ratio * IMAGE_SIZE) + 2
    mask = Image.new("L", (side * 4, side * 4), 0)
    width = item.size_ratio * IMAGE_SIZE * 4
    _draw_shape(ImageDraw.Draw(mask), item.shape, (left - x0) * 4, (top - y0) * 4, width, 255)
    canvas.paste(rgb, (x0, y0), mask.reduce(4))


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, left: float, top: float, width: float, fill: int
) -> None:
    if shape == "circle":
        draw.ellipse((left, top, left + width - 1, top + width - 1), fill=fill)
        return
    outline = OUTLINES[shape]()
    draw.polygon([(left + x * (width - 1), top + y * (width - 1)) for x, y in outline], fill=fill)


def _square() -> list[tuple[float, float]]:
    return [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]


def _triangle() -> list[tuple[float, float]]:
    return [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]


def _star() -> list[tuple[float, float]]:
    corners = []
    for k in range(10):
        radius = 0.5 if k % 2 == 0 else 0.2
        angle = math.pi * k / 5
        corners.append((0.5 + radius * math.sin(angle), 0.5 - radius * math.cos(angle)))
    return corners


def _cross() -> list[tuple[float, float]]:
    a, b = 0.33, 0.67
    return [
        (a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b),
        (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a),
    ]  # fmt: skip


OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
