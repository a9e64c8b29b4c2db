"""`tokens+layers`: one strategy chooses the tokens, another the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from allrounder.pruning.strategy import Context, Strategy


@dataclass(frozen=True, kw_only=True)
class Composed(Strategy):
    """`left+right`: tokens by `left`, layers by `right`; both are asked by way of their parts."""

    left: Strategy
    right: Strategy

    @property
    def label(self) -> str:
        return f"{self.left.name}+{self.right.name}"

    @property
    def token_part(self) -> Strategy | None:
        return self.left

    @property
    def layer_part(self) -> Strategy | None:
        return self.right

    def candidates(self, context: Context) -> tuple[int, ...]:
        return self.right.candidates(context)

    def check(self, context: Context) -> None:
        self.left.check(context)
        self.right.check(context)

    def knobs(self) -> dict[str, Any]:
        return {**self.left.knobs(), **self.right.knobs()}


def needs_router(strategy: Strategy) -> bool:
    parts = (strategy.token_part, strategy.layer_part)
    return any(part is not None and part.needs_router for part in parts)


def is_calibrated(strategy: Strategy) -> bool:
    """Whether a router's calibration speaks of these plans; of no pruning it always does."""
    parts = (strategy.token_part, strategy.layer_part)
    return all(part is None or part.calibrated for part in parts)


def label(strategy: Strategy) -> str:
    return strategy.label if isinstance(strategy, Composed) else strategy.name
