"""Estimates with their standard errors: means of clustered items, percentiles of timed rounds.

Pure arithmetic. Items of one cluster, such as the questions about one image, are not independent;
rounds are compared pairwise, so that what slows a whole round cancels.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_PERCENTILE_DRAWS = 2000
_RATIO_DRAWS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A figure over `n` items with its standard error, NaN where the items do not tell it."""

    value: float
    stderr: float
    n: int

    def as_json(self, name: str) -> dict[str, Any]:
        """The value goes by `name`."""
        found = asdict(self)
        return {name: found.pop("value"), **found}

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}"


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def standard_error(values: Sequence[float], clusters: Sequence[int]) -> float:
    """Of the mean, taking all items of a cluster as one draw."""
    middle = mean(values)
    sums: dict[int, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - middle
    return math.sqrt(math.fsum(total**2 for total in sums.values())) / len(values)


def clustered_mean(values: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """`clusters` may be those of more items; the first ones count."""
    own = clusters[: len(values)]
    return Estimate(value=mean(values), stderr=standard_error(values, own), n=len(values))


def sample_mean(values: Sequence[float]) -> Estimate:
    """Of independent items, with the unbiased variance; the error of a single item is 0."""
    middle, n = mean(values), len(values)
    variance = math.fsum((value - middle) ** 2 for value in values) / max(n - 1, 1)
    return Estimate(value=middle, stderr=math.sqrt(variance / n), n=n)


def difference(mine: Sequence[float], theirs: Sequence[float], clusters: Sequence[int]) -> Estimate:
    """Mean of mine - theirs over the items that both have: the first ones."""
    paired = [float(a) - float(b) for a, b in zip(mine, theirs, strict=False)]
    return clustered_mean(paired, clusters)


def ratio_of_means(
    mine: Sequence[float], theirs: Sequence[float], clusters: Sequence[int]
) -> Estimate | None:
    """Mean of mine over mean of theirs on common items, its error by the delta method.

    None where the mean of theirs is 0.
    """
    pairs = list(zip(mine, theirs, strict=False))
    below = mean([b for _, b in pairs])
    if not below:
        return None
    value = mean([a for a, _ in pairs]) / below
    residuals = [(a - value * b) / below for a, b in pairs]
    stderr = standard_error(residuals, clusters[: len(pairs)])
    return Estimate(value=value, stderr=stderr, n=len(pairs))


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the closest ranks; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def bootstrapped(values: Sequence[float], percent: float = 50) -> Estimate:
    """A percentile, by default the median; its error is NaN for fewer than two values."""
    error = _bootstrap_error(values, percent, _PERCENTILE_DRAWS) if len(values) > 1 else math.nan
    return Estimate(value=percentile(values, percent), stderr=error, n=len(values))


def ratios(values: Sequence[float], baselines: Sequence[float]) -> list[float]:
    """Round by round."""
    return [value / baseline for value, baseline in zip(values, baselines, strict=True)]


def median_ratio(mine: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Median of the ratios round by round, bootstrapped; the error of a single round is 0."""
    found = ratios(mine, theirs)
    error = _bootstrap_error(found, 50, _RATIO_DRAWS)
    return Estimate(value=percentile(found, 50), stderr=error, n=len(found))


def turns(num_settings: int, *, num_rounds: int) -> Iterator[tuple[int, int]]:
    """(round, setting) of a timed comparison: each setting once a round, another first each time.

    So a busy machine slows all settings alike.
    """
    for round_idx in range(num_rounds):
        for offset in range(num_settings):
            yield round_idx, (round_idx + offset) % num_settings


def _bootstrap_error(values: Sequence[float], percent: float, num_draws: int) -> float:
    draws = np.random.default_rng(0).integers(0, len(values), (num_draws, len(values)))
    return float(np.percentile(np.asarray(values)[draws], percent, axis=1).std())
