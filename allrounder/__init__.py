"""Allrounder: frozen vision-language models at a compute budget chosen per request.

    from allrounder import VLM

    answer = VLM("demo").generate("photo.png", "What is to the left of the circle?", budget=0.5)
    print(answer, answer.pruning.flops.prefill_ratio)

Importing this loads nothing; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allrounder.answer import Answer
    from allrounder.core import Budget, Counts, FlopsShare, Plan, Quality
    from allrounder.pruning import Strategy, register_strategy
    from allrounder.vlm import VLM

__all__ = [
    "VLM",
    "Answer",
    "Budget",
    "Counts",
    "FlopsShare",
    "Plan",
    "Quality",
    "Strategy",
    "register_strategy",
]

_HOMES: dict[str, str] = {
    "VLM": "vlm",
    "Answer": "answer",
    "Budget": "core",
    "Counts": "core",
    "FlopsShare": "core",
    "Plan": "core",
    "Quality": "core",
    "Strategy": "pruning",
    "register_strategy": "pruning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
