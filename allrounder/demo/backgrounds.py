"""Backgrounds of scenes: one flat colour, or a base colour with clutter painted over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float32]
CLUTTER = ("gradient", "grating", "blocks", "specks", "lines")


@dataclass(frozen=True, kw_only=True)
class Background:
    """Base colour, the clutter painted over it (none when plain) and pixel noise in grey levels."""

    rgb: tuple[int, int, int]
    clutter: tuple[str, ...] = ()
    noise: float = 0.0

    @property
    def plain(self) -> bool:
        return not self.clutter and self.noise == 0


def draw_background(rng: np.random.Generator, *, plain: bool) -> Background:
    rgb = _draw_base(rng)
    if plain:
        return Background(rgb=rgb)
    count = int(rng.integers(1, 5))
    clutter = tuple(str(name) for name in rng.choice(CLUTTER, count, replace=False))
    noise = float(rng.uniform(2, 9)) if rng.random() < 0.6 else 0.0
    return Background(rgb=rgb, clutter=clutter, noise=noise)


def paint_background(
    background: Background, side: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    pixels = np.empty((side, side, 3), np.float32)
    pixels[:] = np.array(background.rgb, np.float32)
    for name in CLUTTER:
        if name in background.clutter:
            pixels = PAINTERS[name](pixels, rng)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _draw_base(rng: np.random.Generator) -> tuple[int, int, int]:
    kind = rng.random()
    if kind < 0.25:
        base = np.full(3, rng.choice([255.0, rng.uniform(225, 255)]))
    elif kind < 0.45:
        base = np.full(3, rng.choice([0.0, rng.uniform(0, 45)]))
    elif kind < 0.75:
        base = rng.uniform(50, 190) + rng.uniform(-25, 25, 3)
    else:
        base = rng.uniform(0, 255, 3)
    red, green, blue = (int(v) for v in np.clip(base, 0, 255))
    return red, green, blue


def _gradient(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    ramp = np.linspace(-0.5, 0.5, len(pixels), dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    plane = ramp[:, None] * np.float32(np.sin(angle)) + ramp[None] * np.float32(np.cos(angle))
    shaded: Pixels = pixels + plane[..., None] * rng.uniform(-70, 70, 3).astype(np.float32)
    return shaded


def _grating(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    axis = np.arange(len(pixels), dtype=np.float32)
    fx, fy = rng.uniform(-0.35, 0.35, 2).astype(np.float32)
    wave = np.sin(axis[:, None] * fy + axis[None] * fx + np.float32(rng.uniform(0, 6.28)))
    striped: Pixels = pixels + wave[..., None] * rng.uniform(3, 20, 3).astype(np.float32)
    return striped


def _blocks(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    cells = int(rng.choice([7, 14, 28]))
    block = len(pixels) // cells
    low = rng.standard_normal((cells, cells, 3), dtype=np.float32) * np.float32(rng.uniform(4, 14))
    return pixels + low.repeat(block, axis=0).repeat(block, axis=1)


def _specks(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    for _ in range(int(rng.integers(4, 13))):
        x, y = rng.integers(0, len(pixels) - 5, 2)
        w, h = rng.integers(2, 5, 2)
        pixels[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
    return pixels


def _lines(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 6))):
        x0, y0, x1, y1 = (int(v) for v in rng.integers(0, len(pixels), 4))
        red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
        draw.line((x0, y0, x1, y1), fill=(red, green, blue), width=1)
    return np.asarray(canvas).astype(np.float32)


PAINTERS: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "gradient": _gradient,
    "grating": _grating,
    "blocks": _blocks,
    "specks": _specks,
    "lines": _lines,
}
