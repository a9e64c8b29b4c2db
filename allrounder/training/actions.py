"""Perturbed pruning actions (PAR, section 4.2): which tokens to keep, which layers to skip.

Shapes: A actions, H heads, S text rows, V visual tokens, N candidate layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from allrounder.pruning.strategy import keep_best

Noise = Literal["logits", "zscore"]
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The actions of one sample: True is kept (A x V) and run (A x N)."""

    kept_AV: Tensor
    runs_AN: Tensor


def draw_actions(
    attentions_HV: list[Tensor],
    *,
    count: int,
    num_kept: int,
    num_candidates: int,
    num_skipped: int,
    noise: Noise,
    scale: float,
    generator: torch.Generator,
) -> Actions:
    """Noisy top tokens of each attention map in turn, and uniformly drawn layers."""
    num_visual = attentions_HV[0].shape[-1]
    kept_AV = torch.zeros(count, num_visual, dtype=torch.bool)
    runs_AN = torch.ones(count, num_candidates, dtype=torch.bool)
    for idx in range(count):
        attention_HV = attentions_HV[idx % len(attentions_HV)].float().cpu()
        scores_V = _perturbed(attention_HV, noise=noise, scale=scale, generator=generator)
        kept_AV[idx, keep_best(scores_V, num_kept)] = True
        runs_AN[idx, torch.randperm(num_candidates, generator=generator)[:num_skipped]] = False
    return Actions(kept_AV=kept_AV, runs_AN=runs_AN)


def _perturbed(
    attention_HV: Tensor, *, noise: Noise, scale: float, generator: torch.Generator
) -> Tensor:
    if noise == "zscore":
        log_V = (attention_HV.mean(0) + _TINY).log()
        drawn_V = torch.randn(log_V.shape, generator=generator)
        return (log_V - log_V.mean()) / log_V.std().clamp_min(_TINY) + scale * drawn_V
    # Per head, log attention is the pre-softmax logit up to a constant. Each head keeps the mass
    # that it gives to the image.
    log_HV = (attention_HV + _TINY).log()
    drawn_HV = torch.randn(log_HV.shape, generator=generator)
    mass_H1 = attention_HV.sum(-1, keepdim=True)
    return ((log_HV + scale * drawn_HV).softmax(-1) * mass_H1).mean(0)
