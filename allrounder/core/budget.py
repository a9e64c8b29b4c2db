"""The budget forms, one frozen dataclass each; `allows` is the single test of a plan's cost.

To add a form: one dataclass here with `allows`, its name in `Budget`, a parser case in
`allrounder/budget.py`, a case in `allrounder/pruning/allocate.py`, and a row in `tests/cases.py` (a
looser value allows all that a tighter one did; no plan ever exceeds it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from allrounder.core.plan import Cost

FORMS = ("number", "flops", "tokens and layers", "quality")
FORMS_NOT_YET = ("auto", "latency_ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopsShare:
    """A share in (0, 1] of dense decoder-prefill FLOPs, the cost of choosing included."""

    share: float

    def allows(self, cost: Cost) -> bool:
        return cost.prefill_ratio <= self.share


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Keep `tokens` visual tokens and run `layers` decoder layers; None leaves that side whole."""

    tokens: int | None = None
    layers: int | None = None

    def allows(self, cost: Cost) -> bool:
        return (self.tokens is None or cost.num_kept <= self.tokens) and (
            self.layers is None or cost.num_layers_run <= self.layers
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """The cheapest plan whose calibrated loyalty is at least `loyalty`, in (0, 1]; 1 is dense.

    Loyalty is the share of greedy answers that equal the dense model's. What a plan costs is not
    limited beforehand: the limit is the cost of the plan that is found.
    """

    loyalty: float

    def allows(self, cost: Cost) -> bool:
        return cost.loyalty is not None and cost.loyalty >= self.loyalty


Budget = FlopsShare | Counts | Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRequest:
    """A budget form with the options that stand beside it; still to be resolved by the runner.

    Attributes:
        requested: the form as the caller wrote it, echoed in the answer.
        options: knobs of the strategy, by their field names.
    """

    form: Budget
    requested: Any
    strategy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    min_tokens: int = 1
