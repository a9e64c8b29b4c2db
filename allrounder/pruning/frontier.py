"""How a share of FLOPs is best split between fewer tokens and fewer layers.

Pure arithmetic. Either a calibration measured on unlabelled data (stored in the router's manifest),
or the operating points that PAR publishes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A way to spend a budget: shares of visual tokens kept and of decoder layers skipped."""

    token_ratio: float
    skip_ratio: float


class Frontier(Protocol):
    def loss(self, split: Split, share: float) -> float:
        """Expected harm of `split` under a budget of `share`; only its order matters."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedFrontier:
    """The default: layer shares of PAR's Table 1 on LLaVA-1.5-7B, read off by FLOPs.

    272 tokens/30 of 32 layers at 66 %, 224/28 at 58 %, 176/24 at 47 %; nothing is skipped above
    75 %. The fewest layers skipped wins above a point, the nearest to the table below it.
    """

    POINTS = ((0.47, 8 / 32), (0.58, 4 / 32), (0.66, 2 / 32), (0.75, 0.0))

    def loss(self, split: Split, share: float) -> float:
        wanted = next((skip for limit, skip in self.POINTS if share <= limit), 0.0)
        return abs(split.skip_ratio - wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedFrontier:
    """Measured harm on a grid of (skip_ratio, token_ratio), interpolated.

    Attributes:
        skip_ratios, token_ratios: ascending grid axes.
        harm: one row per skip ratio, one value per token ratio: mean KL to the dense answer in
            nats, or the share of answers that differ from it.
    """

    skip_ratios: tuple[float, ...]
    token_ratios: tuple[float, ...]
    harm: tuple[tuple[float, ...], ...]

    def loss(self, split: Split, share: float) -> float:
        rows = [_interpolate(self.token_ratios, row, split.token_ratio) for row in self.harm]
        return _interpolate(self.skip_ratios, rows, split.skip_ratio)


def _interpolate(axis: Sequence[float], values: Sequence[float], at: float) -> float:
    if at <= axis[0]:
        return values[0]
    if at >= axis[-1]:
        return values[-1]
    right = bisect_left(axis, at)
    weight = (at - axis[right - 1]) / (axis[right] - axis[right - 1])
    return values[right - 1] * (1 - weight) + values[right] * weight
