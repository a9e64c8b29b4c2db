"""Statistics of timed rounds, and rounds in which all settings take turns. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A statistic of `n` values; its standard error is None where one value says nothing of it."""

    value: float
    stderr: float | None
    n: int


def interleaved(
    settings: Mapping[str, Callable[[], T]], *, rounds: int, tick: Callable[[], object]
) -> dict[str, list[T]]:
    """Each setting once a round, a different one first each round; results by round."""
    names = list(settings)
    found: dict[str, list[T]] = {name: [] for name in names}
    for round_idx in range(rounds):
        start = round_idx % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(settings[name]())
            tick()
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the closest ranks; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def estimate(values: Sequence[float], percent: float = 50) -> Estimate:
    """A percentile (by default the median) with the standard error of its bootstrap."""
    value = percentile(values, percent)
    if len(values) < 2:
        return Estimate(value=value, stderr=None, n=len(values))
    draws = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    replicas = np.percentile(np.asarray(values)[draws], percent, axis=1)
    return Estimate(value=value, stderr=float(replicas.std()), n=len(values))


def ratios(values: Sequence[float], baselines: Sequence[float]) -> list[float]:
    """Round by round, so that what slows a whole round cancels."""
    return [value / baseline for value, baseline in zip(values, baselines, strict=True)]
