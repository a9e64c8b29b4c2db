"""What loyalty a plan of some size promises, by a calibration on unlabelled data.

Pure arithmetic. Loyalty is the share of greedy answers that equal the dense model's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from allrounder.pruning.compose import is_calibrated, label
from allrounder.pruning.frontier import Split
from allrounder.pruning.strategy import Strategy, refuse

DEFAULT_MARGIN = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedLoyalty:
    """Promised loyalty on a grid of (skip_ratio, token_ratio).

    Attributes:
        skip_ratios, token_ratios: ascending grid axes.
        promised: one row per skip ratio, one value per token ratio; more tokens never promise
            less, more skips never more.
    """

    skip_ratios: tuple[float, ...]
    token_ratios: tuple[float, ...]
    promised: tuple[tuple[float, ...], ...]

    @classmethod
    def under(
        cls,
        *,
        skip_ratios: tuple[float, ...],
        token_ratios: tuple[float, ...],
        mean: Sequence[Sequence[float]],
        standard_error: Sequence[Sequence[float]],
        margin: float = DEFAULT_MARGIN,
    ) -> CalibratedLoyalty:
        """Promise `margin` standard errors less than what was measured.

        The cheapest of many measured sizes is likelier than not one that luck favoured, so a
        promise of the mean would be broken more often than kept. What a size promises, every size
        with more tokens and fewer skips promises too.
        """
        lowered = [
            [max(0.0, share - margin * error) for share, error in zip(*rows, strict=True)]
            for rows in zip(mean, standard_error, strict=True)
        ]
        return cls(
            skip_ratios=skip_ratios, token_ratios=token_ratios, promised=_best_of_harsher(lowered)
        )

    def at(self, split: Split) -> float:
        """What the nearest measured size promises that is no milder; 0 where none was measured.

        Loyalty falls steeply with the first tokens dropped, so a line between two sizes would
        promise too much.
        """
        row = bisect_left(self.skip_ratios, split.skip_ratio)
        column = bisect_right(self.token_ratios, split.token_ratio) - 1
        if row == len(self.skip_ratios) or column < 0:
            return 0.0
        return self.promised[row][column]


def require_loyalty(
    loyalty: CalibratedLoyalty | None, strategy: Strategy, *, named: bool
) -> CalibratedLoyalty:
    """Raises InvalidField where nothing is known; `named`: the caller chose the strategy."""
    advice = "or give a share of FLOPs"
    if not is_calibrated(strategy):
        if named:
            raise refuse(
                "strategy",
                f"strategy {label(strategy)!r} has no calibration that a quality could be held "
                f"against; take par, par-token or par-layer, {advice}",
            )
        raise refuse(
            "quality",
            "this model has no router whose calibration a quality could be held against; train "
            f"one with allrounder train router, {advice}",
        )
    if loyalty is None:
        raise refuse(
            "quality",
            "this model's router was calibrated without loyalty; train it again with allrounder "
            f"train router, {advice}",
        )
    return loyalty


def _best_of_harsher(rows: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Each cell's maximum over all cells with as many skips or more and as many tokens or fewer."""
    found: list[tuple[float, ...]] = []
    below: Sequence[float] = [0.0] * len(rows[0])
    for row in reversed(rows):
        best, values = 0.0, []
        for value, under in zip(row, below, strict=True):
            best = max(best, value, under)
            values.append(best)
        below = values
        found.append(tuple(values))
    return tuple(reversed(found))
