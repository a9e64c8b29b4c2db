"""The budget forms, one frozen dataclass each; `allows` is the single test of a plan's cost.

To add a form: one dataclass here with `allows` and `limit`, its name in `Budget`, a parser case in
`app/intake/requests.py`, and a row in `tests/cases.py` (a looser value allows all that a tighter
one did; no plan ever exceeds it).
"""

from __future__ import annotations

from dataclasses import dataclass

from app.core import Cost

FORMS = ("number", "flops", "tokens and layers")
FORMS_NOT_YET = ("auto", "latency_ms", "quality")


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


Budget = FlopsShare | Counts
