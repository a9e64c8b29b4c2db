"""Greedy subset selection over similarity matrices: one kernel for each criterion.

Each takes K steps of vector operations on the matrix's device, without waiting for it; ties go to
the lower index. Scores are float32.

Shapes: V candidates, R things to be covered, K picked.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-6


def cosines(left_AD: Tensor, right_BD: Tensor) -> Tensor:
    """Cosine of every pair: A x B. A zero vector is like nothing."""
    normal = torch.nn.functional.normalize
    return normal(left_AD.float(), dim=-1) @ normal(right_BD.float(), dim=-1).T


def cosine_flops(num_left: int, num_right: int, width: int) -> int:
    return 2 * num_left * num_right * width


def farthest_points(distance_VV: Tensor, count: int) -> Tensor:
    """Max-min distance: first the token whose nearest other is farthest, then the farthest from all
    that are picked. Indexes in the order of picking."""
    apart = distance_VV.clone().fill_diagonal_(float("inf"))
    pick = apart.amin(1).argmax().view(1)
    nearest_V = distance_VV.index_select(0, pick)[0].clone()
    picks = [pick]
    for _ in range(count - 1):
        nearest_V.index_fill_(0, pick, float("-inf"))
        pick = nearest_V.argmax().view(1)
        picks.append(pick)
        nearest_V = torch.minimum(nearest_V, distance_VV.index_select(0, pick)[0])
    return torch.cat(picks)


def farthest_flops(num_tokens: int, count: int) -> int:
    return num_tokens * num_tokens + 2 * num_tokens * count


def most_covering(cover_RV: Tensor, count: int) -> Tensor:
    """Facility location: each step adds what raises the sum over R of the best cover most."""
    best_R1 = cover_RV.new_zeros(len(cover_RV), 1)
    taken_V = cover_RV.new_zeros(cover_RV.shape[1])
    gain_RV = torch.empty_like(cover_RV)
    picks = []
    for _ in range(count):
        torch.sub(cover_RV, best_R1, out=gain_RV)
        gains_V = gain_RV.clamp_(min=0).sum(0) + taken_V
        pick = gains_V.argmax().view(1)
        taken_V.index_fill_(0, pick, float("-inf"))
        best_R1 = torch.maximum(best_R1, cover_RV.index_select(1, pick))
        picks.append(pick)
    return torch.cat(picks)


def covering_flops(num_covered: int, num_tokens: int, count: int) -> int:
    return 3 * num_covered * num_tokens * count


def most_volume(similar_VV: Tensor, log_quality_V: Tensor, count: int) -> Tensor:
    """Greedy MAP of the determinantal point process with the kernel q_i S_ij q_j.

    By Cholesky rows of S (Fast-MAP, arXiv 1709.05135): given what is picked, the kernel's gain is
    that of S times q_i squared, so that no quality is too large or small for float32. Once the rank
    of S is used up, quality alone decides.
    """
    gain_V = similar_VV.diagonal().clone()
    rows_KV = similar_VV.new_zeros(count, len(similar_VV))
    bonus_V = 2 * log_quality_V
    picks = []
    for step in range(count):
        pick = (gain_V.clamp(min=_EPSILON).log() + bonus_V).argmax().view(1)
        bonus_V.index_fill_(0, pick, float("-inf"))
        picks.append(pick)
        before_KV = rows_KV[:step]
        known_1V = before_KV.index_select(1, pick).T @ before_KV
        gain_1 = gain_V.index_select(0, pick)
        new_V = (similar_VV.index_select(0, pick) - known_1V)[0] / gain_1.clamp(min=_EPSILON).sqrt()
        rows_KV[step] = torch.where(gain_1 > _EPSILON, new_V, 0)
        gain_V = gain_V - rows_KV[step].square()
    return torch.cat(picks)


def volume_flops(num_tokens: int, count: int) -> int:
    return num_tokens * count * count + 8 * num_tokens * count
