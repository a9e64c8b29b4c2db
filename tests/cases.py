"""The tables that contract tests run over: one row per strategy and per budget form.

A new strategy, family or form adds its row here and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.budget import Budget, Counts, FlopsShare, Quality


@dataclass(frozen=True, kw_only=True)
class StrategyCase:
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    prunes_tokens: bool = True
    prunes_layers: bool = False
    selection_layer: int = 0

    def __str__(self) -> str:
        knobs = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({knobs})" if knobs else self.name


STRATEGIES = (
    StrategyCase(name="random", prunes_layers=True),
    StrategyCase(name="fastv", selection_layer=2),
    StrategyCase(name="fastv", options={"layer": 3}, selection_layer=3),
    StrategyCase(name="shortgpt", prunes_tokens=False, prunes_layers=True),
    StrategyCase(name="par", prunes_layers=True),
    StrategyCase(name="par-token"),
    StrategyCase(name="par-layer", prunes_tokens=False, prunes_layers=True),
    StrategyCase(name="random+shortgpt", prunes_layers=True),
    StrategyCase(name="fastv+shortgpt", prunes_layers=True, selection_layer=2),
    StrategyCase(name="fastv+par-layer", prunes_layers=True, selection_layer=2),
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
