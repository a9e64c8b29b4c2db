"""The tables that contract tests run over: one row per strategy and per budget form.

A new strategy, family or form adds its row here and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from allrounder.core import ModelGeometry, PromptShape
from allrounder.core.budget import Budget, Counts, FlopsShare, Quality
from allrounder.pruning.greedy import covering_flops, farthest_flops

LLAVA_1_5_7B = ModelGeometry(
    num_layers=32,
    width=4096,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_width=11008,
    vocab_size=32064,
    max_positions=4096,
)


@dataclass(frozen=True, kw_only=True)
class StrategyCase:
    """What contract tests on six layers expect.

    Attributes:
        selection_layer: of the last selection.
        keeps_count: exactly the count survives; else it is a bound.
        merges, renumbers: dropping is then more than masking.
        loops: (prompt shape, count) -> FLOPs of a greedy loop's vectors, charged but no matrices.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    prunes_tokens: bool = True
    prunes_layers: bool = False
    selection_layer: int = 0
    keeps_count: bool = True
    merges: bool = False
    renumbers: bool = False
    loops: Callable[[PromptShape, int], int] = lambda shape, count: 0

    def __str__(self) -> str:
        knobs = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({knobs})" if knobs else self.name


def _divprune_loops(shape: PromptShape, count: int) -> int:
    return farthest_flops(shape.num_visual, count)


def _cdpruner_loops(shape: PromptShape, count: int) -> int:
    return 8 * shape.num_visual * count


def _mmtok_loops(shape: PromptShape, count: int) -> int:
    covered = shape.num_question + shape.num_visual
    return covering_flops(covered, shape.num_visual, count)


STRATEGIES = (
    StrategyCase(name="random", prunes_layers=True),
    StrategyCase(name="fastv", selection_layer=2),
    StrategyCase(name="fastv", options={"layer": 3}, selection_layer=3),
    StrategyCase(name="divprune", loops=_divprune_loops),
    StrategyCase(name="cdpruner", loops=_cdpruner_loops),
    StrategyCase(
        name="cdpruner",
        options={"relevance_weight": 0.9, "negative": True},
        loops=_cdpruner_loops,
    ),
    StrategyCase(name="mmtok", loops=_mmtok_loops),
    StrategyCase(name="visionzip", merges=True),
    StrategyCase(name="prumerge", options={"neighbours": 5}, merges=True),
    StrategyCase(name="pool", merges=True),
    StrategyCase(name="divprune+shortgpt", prunes_layers=True, loops=_divprune_loops),
    StrategyCase(name="visionzip+par-layer", prunes_layers=True, merges=True),
    StrategyCase(name="pdrop", selection_layer=4),
    StrategyCase(name="pdrop", options={"stages": 2}, selection_layer=4),
    StrategyCase(name="pdrop", options={"renumber": True}, selection_layer=4, renumbers=True),
    StrategyCase(name="llavolta", selection_layer=2, merges=True),
    StrategyCase(name="llavolta", options={"layer": 0}, merges=True),
    StrategyCase(
        name="llavolta",
        options={"layer": 0, "renumber": True},
        merges=True,
        renumbers=True,
    ),
    StrategyCase(name="autoprune", selection_layer=5, keeps_count=False),
    StrategyCase(
        name="autoprune",
        options={"recycle": True, "renumber": True, "k0": 2.0},
        selection_layer=5,
        keeps_count=False,
        merges=True,
        renumbers=True,
    ),
    StrategyCase(name="shortgpt", prunes_tokens=False, prunes_layers=True),
    StrategyCase(name="par", prunes_layers=True),
    StrategyCase(name="par-token"),
    StrategyCase(name="par-layer", prunes_tokens=False, prunes_layers=True),
    StrategyCase(name="random+shortgpt", prunes_layers=True),
    StrategyCase(name="fastv+shortgpt", prunes_layers=True, selection_layer=2),
    StrategyCase(name="fastv+par-layer", prunes_layers=True, selection_layer=2),
    StrategyCase(name="pdrop+shortgpt", prunes_layers=True, selection_layer=4),
)


@dataclass(frozen=True, kw_only=True)
class BudgetCase:
    """`tighter` and `looser` are two values of one form."""

    tighter: Budget
    looser: Budget


BUDGETS = (
    BudgetCase(tighter=FlopsShare(share=0.4), looser=FlopsShare(share=0.7)),
    BudgetCase(tighter=Counts(tokens=10), looser=Counts(tokens=30)),
    BudgetCase(tighter=Counts(layers=4), looser=Counts(layers=5)),
    BudgetCase(tighter=Counts(tokens=10, layers=4), looser=Counts(tokens=30, layers=6)),
    BudgetCase(tighter=Quality(loyalty=0.95), looser=Quality(loyalty=0.8)),
)
