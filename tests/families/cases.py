"""One row per LVLM family: a tiny random model of it, in a folder as a user would have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.families.idefics3 import tiny_idefics3_folder, tiny_smolvlm_folder
from tests.families.internvl import tiny_internvl_folder
from tests.families.llava_next import tiny_llava_next_folder
from tests.families.llava_onevision import tiny_llava_onevision_folder
from tests.families.qwen import (
    tiny_qwen2_5_vl_folder,
    tiny_qwen2_vl_folder,
    tiny_qwen3_vl_folder,
)
from tests.tiny import tiny_llava_folder

WIDE_AND_TALL = ((40, 30), (200, 112), (30, 90), (300, 40), (170, 160))


@dataclass(frozen=True, kw_only=True)
class FamilyCase:
    """`build(folder)` writes model, processor and chat template into `folder`, and returns it.

    Attributes:
        sizes: (width, height) of images that the family lays out differently, where it does.
        knows_system: whether its chat template has a place for system messages.
    """

    name: str
    build: Callable[[Path], Path]
    sizes: tuple[tuple[int, int], ...]
    max_images: int = 2
    knows_system: bool = True

    def __str__(self) -> str:
        return self.name


QWEN_SIZES = ((40, 30), (300, 18), (112, 112), (16, 260), (500, 333))

FAMILIES = (
    FamilyCase(name="llava", build=tiny_llava_folder, sizes=((40, 30), (200, 112), (30, 90))),
    FamilyCase(
        name="llava_next", build=tiny_llava_next_folder, sizes=WIDE_AND_TALL, knows_system=False
    ),
    FamilyCase(
        name="llava_onevision",
        build=tiny_llava_onevision_folder,
        sizes=WIDE_AND_TALL,
        max_images=1,
    ),
    FamilyCase(name="internvl", build=tiny_internvl_folder, sizes=WIDE_AND_TALL),
    FamilyCase(name="idefics3", build=tiny_idefics3_folder, sizes=WIDE_AND_TALL),
    FamilyCase(name="smolvlm", build=tiny_smolvlm_folder, sizes=WIDE_AND_TALL),
    FamilyCase(name="qwen2_vl", build=tiny_qwen2_vl_folder, sizes=QWEN_SIZES),
    FamilyCase(name="qwen2_5_vl", build=tiny_qwen2_5_vl_folder, sizes=QWEN_SIZES),
    FamilyCase(name="qwen3_vl", build=tiny_qwen3_vl_folder, sizes=QWEN_SIZES),
)
