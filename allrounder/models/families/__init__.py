"""LVLM families, by the `model_type` of their configuration.

To add a family: one file here with a class that satisfies `Family`, one line in `FAMILIES`, and one
row in `tests/families/cases.py` (a tiny random config: dense plan equals the library's own
`generate` token for token; gather equals mask).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from allrounder.errors import ModelUnsupported
from allrounder.models.families.family import Family


def _llava() -> Family:
    from allrounder.models.families.llava import Llava

    return Llava()


def _llava_next() -> Family:
    from allrounder.models.families.llava_next import LlavaNext

    return LlavaNext()


def _llava_onevision() -> Family:
    from allrounder.models.families.llava_onevision import LlavaOnevision

    return LlavaOnevision()


def _internvl() -> Family:
    from allrounder.models.families.internvl import InternVL

    return InternVL()


def _idefics3(name: str) -> Family:
    from allrounder.models.families.idefics3 import Idefics3

    return Idefics3(name)


def _qwen2_vl() -> Family:
    from allrounder.models.families.qwen2_vl import Qwen2Vl

    return Qwen2Vl()


def _qwen2_5_vl() -> Family:
    from allrounder.models.families.qwen2_vl import Qwen2_5Vl

    return Qwen2_5Vl()


def _qwen3_vl() -> Family:
    from allrounder.models.families.qwen3_vl import Qwen3Vl

    return Qwen3Vl()


FAMILIES: dict[str, Callable[[], Family]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "idefics3": partial(_idefics3, "idefics3"),
    "smolvlm": partial(_idefics3, "smolvlm"),
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}


def family_of(model_type: str) -> Family:
    """The family of a transformers `model_type`. Raises ModelUnsupported naming the known ones."""
    factory = FAMILIES.get(model_type)
    if factory is None:
        known = ", ".join(sorted(FAMILIES))
        raise ModelUnsupported(f"model type {model_type!r} is not supported; supported: {known}")
    return factory()
