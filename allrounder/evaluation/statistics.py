"""Means and standard errors over items that come in clusters, also of differences and ratios."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_DRAWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure with its standard error, over `n` items."""

    value: float
    stderr: float
    n: int

    def as_json(self, name: str) -> dict[str, Any]:
        """The value goes by `name`."""
        found = asdict(self)
        return {name: found.pop("value"), **found}


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float], clusters: Sequence[int]) -> float:
    """Of the mean, taking all items of a cluster as one draw."""
    middle = mean(values)
    sums: dict[int, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - middle
    return math.sqrt(math.fsum(total**2 for total in sums.values())) / len(values)


def estimate(values: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """Of the mean. `clusters` may be those of more items; the first ones count."""
    own = clusters[: len(values)]
    return Estimate(value=mean(values), stderr=standard_error(values, own), n=len(values))


def difference(mine: Sequence[float], theirs: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """Mean of mine - theirs over the items that both have: the first ones."""
    paired = [float(a) - float(b) for a, b in zip(mine, theirs, strict=False)]
    return estimate(paired, clusters)


def ratio(
    mine: Sequence[float], theirs: Sequence[float], clusters: Sequence[int]
) -> Estimate | None:
    """Mean of mine over mean of theirs on common items, its error by the delta method.

    None where theirs is nothing.
    """
    pairs = list(zip(mine, theirs, strict=False))
    below = mean([b for _, b in pairs])
    if not below:
        return None
    value = mean([a for a, _ in pairs]) / below
    residuals = [(a - value * b) / below for a, b in pairs]
    stderr = standard_error(residuals, clusters[: len(pairs)])
    return Estimate(value=value, stderr=stderr, n=len(pairs))


def median_ratio(mine: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Median of ratios round by round, so that what slows a whole round cancels; bootstrapped."""
    ratios = np.array([a / b for a, b in zip(mine, theirs, strict=True)])
    draws = np.random.default_rng(0).integers(0, len(ratios), (_DRAWS, len(ratios)))
    replicas = np.median(ratios[draws], axis=1)
    return Estimate(
        value=statistics.median(ratios.tolist()), stderr=float(replicas.std()), n=len(ratios)
    )
