"""What the engine is held to on the shape that stands for LLaVA-1.5-7B on two cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from allrounder.bench.rows import Goal, Row

MODEL = "random-llava-512x32"
GOALS: Mapping[str, Goal] = MappingProxyType(
    {
        "generate/dense/1": Goal(ratio=1.15),
        "generate/dense/8": Goal(ratio=1.3),
        "generate/144x28/1": Goal(ratio=2.7),
        "generate/144x28/8": Goal(ratio=3.5),
        "generate/64x24/1": Goal(ratio=3.5),
        "generate/64x24/8": Goal(ratio=5.0),
        "prefill/0.5": Goal(ratio=0.9),
        "prefill/0.35": Goal(ratio=0.9),
        "prefill/0.25": Goal(ratio=0.9),
        "prefill/0.2": Goal(ratio=0.9),
        "mixed-plans/8": Goal(ratio=0.9),
        "kv-bytes/144x28": Goal(ratio=0.4, at_most=True),
        "router/4096/flops": Goal(ratio=0.02, at_most=True),
        "router/4096/time": Goal(ratio=0.05, at_most=True),
    }
)


def with_goals(rows: Sequence[Row], model: str) -> list[Row]:
    """The rows, each with its goal if `model` is the one that goals are set for."""
    if model != MODEL:
        return list(rows)
    return [replace(row, goal=GOALS.get(row.name)) for row in rows]
