"""One row per LVLM family: a tiny random model of it, in a folder as a user would have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.tiny import tiny_llava_folder


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """`build(folder)` writes model, processor and chat template into `folder`, and returns it.

    Attributes:
        sizes: (width, height) of images that the family lays out differently, where it does.
    """

    name: str
    build: Callable[[Path], Path]
    sizes: tuple[tuple[int, int], ...]
    max_images: int = 2

    def __str__(self) -> str:
        return self.name


FAMILIES = (
    FamilyCase(name="llava", build=tiny_llava_folder, sizes=((40, 30), (200, 112), (30, 90))),
)
