"""AutoPrune's arithmetic: how complex a request is, and how many visual tokens each layer keeps.

Pure functions, as AutoPrune (arXiv 2509.23931, section 3) was released.

Shapes: H heads, S text rows, C visual tokens, D width, N centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

PUBLISHED_LAYERS = 32
_PLATEAU = 0.75
_FIRST_CUT = 2.5
_TINY = 1e-6
_RECYCLED = 0.3
_PER_CENTRE = 10
_NEIGHBOURS = 5
_SEARCH_STEPS, _SEARCH_TO, _CLOSE = 200, 20.0, 0.01


def mutual_information(attention_HSC: Tensor) -> float:
    """Bits that text rows and visual tokens share, summed over the heads.

    Text rows are equally likely; attention is not normalised anew over the visual tokens.
    """
    joint_HSC = attention_HSC.float() / attention_HSC.shape[1]
    visual_H1C = joint_HSC.sum(1, keepdim=True)
    ratio_HSC = joint_HSC / (visual_H1C / attention_HSC.shape[1] + _TINY)
    return float((joint_HSC * ratio_HSC.clamp_min(_TINY).log2()).sum())


def first_count(budget: int, num_visual: int) -> int:
    """Visual tokens that leave the first layer: 2.5 times the budget."""
    return min(int(_FIRST_CUT * budget), num_visual)


def num_centres(num_dropped: int, *, recycle: bool) -> int:
    """Clusters that stand for so many dropped tokens: a tenth of the best 30 %."""
    if not recycle or num_dropped <= 0:
        return 0
    num_recycled = _num_recycled(num_dropped)
    return min(num_recycled // _PER_CENTRE + 1, num_recycled)


@lru_cache(maxsize=4096)
def retention(
    *,
    num_layers: int,
    num_visual: int,
    budget: int,
    steepness: float,
    centre: float,
    recycle: bool,
) -> tuple[int, ...]:
    """Visual tokens that leave each layer, clusters included; their mean is about `budget`.

    A logistic curve over the depth, scaled by bisection so that the sum over the layers is
    `num_layers * budget`.

    Args:
        centre: the layer at which half of the plateau is left; moved by `steepness`.
    """
    first = first_count(budget, num_visual)
    if first <= 1:
        return (max(first, 1),) * num_layers
    shares = [
        _PLATEAU * _logistic(steepness * (centre + steepness - layer_idx))
        for layer_idx in range(1, num_layers)
    ]
    target = num_layers * budget
    best = _simulated(first, shares, 1.0, recycle=recycle)
    if abs(sum(best) - target) <= 1:
        return best
    low, high = 0.0, _SEARCH_TO
    for _ in range(_SEARCH_STEPS):
        scale = (low + high) / 2
        if scale in (low, high):
            break
        counts = _simulated(first, shares, scale, recycle=recycle)
        error = sum(counts) - target
        if abs(error) < abs(sum(best) - target):
            best = counts
        if abs(error) < _CLOSE:
            break
        low, high = (scale, high) if error < 0 else (low, scale)
    return best


def num_kept(arriving: int, count: int, *, recycle: bool) -> int:
    """Tokens kept as they are where `count` go on: the rest of `count` are clusters."""
    for kept in range(min(arriving, count), -1, -1):
        if kept + num_centres(arriving - kept, recycle=recycle) == count:
            return kept
    return count


def cluster_weights(
    hidden_CD: Tensor, scores_C: Tensor, kept_K: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """Kept tokens as they are, and the best dropped ones averaged into clusters (DPC-kNN).

    Density peaks as in SparseVLM (arXiv 2410.04417): a centre is dense and far from whatever is
    denser. A cluster stands at its centre's place.

    Returns:
        Places among the C tokens, ascending, and for each its weights over them.
    """
    size = len(scores_C)
    is_dropped = torch.ones(size, dtype=torch.bool, device=scores_C.device)
    is_dropped[kept_K] = False
    dropped = is_dropped.nonzero()[:, 0]
    order = scores_C[dropped].argsort(descending=True, stable=True)
    recycled = dropped[order[: _num_recycled(len(dropped))]].sort().values
    centres_N, member_of = _density_peaks(hidden_CD[recycled].float(), num_clusters)
    members = torch.zeros(num_clusters, size, device=hidden_CD.device)
    members[member_of, recycled] = 1
    places = torch.cat([kept_K, recycled[centres_N]])
    own = torch.zeros(len(kept_K), size, device=hidden_CD.device)
    own[torch.arange(len(kept_K)), kept_K] = 1
    weights = torch.cat([own, members / members.sum(1, keepdim=True)])
    ascending = places.argsort()
    return places[ascending], weights[ascending]


def clustering_flops(num_dropped: int, width: int) -> int:
    """Products behind the distances of recycled tokens (2 per multiply-add)."""
    return 2 * _num_recycled(num_dropped) ** 2 * width


def _density_peaks(hidden_MD: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Centres among the rows, and which centre each row is nearest to."""
    size, width = hidden_MD.shape
    squares_M = hidden_MD.square().sum(1)
    products_MM = hidden_MD @ hidden_MD.t()
    squared_MM = (squares_M[:, None] + squares_M[None] - 2 * products_MM).clamp_min(0)
    distance_MM = (squared_MM / width).sqrt()
    nearest = distance_MM.topk(min(_NEIGHBOURS, size), largest=False).values
    density_M = (-nearest.square().mean(1)).exp()
    # An earlier token counts as the denser of two equal ones; the published code adds noise.
    rank = density_M.argsort(descending=True, stable=True).argsort()
    is_denser_MM = rank[None] < rank[:, None]
    farthest = distance_MM.max()
    apart_M = distance_MM.masked_fill(~is_denser_MM, float("inf")).min(1).values
    apart_M = apart_M.where(apart_M.isfinite(), farthest)
    peaks = (density_M * apart_M).argsort(descending=True, stable=True)[:num_clusters]
    member_of = distance_MM[:, peaks].argmin(1)
    member_of[peaks] = torch.arange(num_clusters, device=peaks.device)
    return peaks, member_of


def _simulated(
    first: int, shares: Sequence[float], scale: float, *, recycle: bool
) -> tuple[int, ...]:
    counts = [first]
    for share in shares:
        kept = min(math.ceil((first - 1) * min(1.0, scale * share)), counts[-1])
        kept = max(kept, 1)
        counts.append(kept + num_centres(counts[-1] - kept, recycle=recycle))
    return tuple(counts)


def _num_recycled(num_dropped: int) -> int:
    return int(_RECYCLED * num_dropped) + 1 if num_dropped else 0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
