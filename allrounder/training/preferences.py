"""Preference pairs and the reference-free loss (PAR, section 4.2, equation 4).

An action is a set of independent keep-or-discard choices. With logits z,
log p(S+) - log p(S-) = sum z (a+ - a-): the loss is a Bradley-Terry model of an additive utility.

Shapes: B samples, P pairs, V visual tokens, N candidate layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allrounder.training.collect import PreferenceSample
from allrounder.training.options import RouterTrainingOptions

Reduction = Literal["mean", "sum"]


def balanced_pairs(kl_nats: Sequence[float], *, min_gap: float) -> list[tuple[int, int]]:
    """(better, worse) action indexes: best with worst, second best with second worst, and so on.

    Each action serves once, a median stays out, pairs nearer than `min_gap` nats are discarded.
    """
    order = sorted(range(len(kl_nats)), key=lambda idx: (kl_nats[idx], idx))
    half = len(order) // 2
    pairs = zip(order[:half], reversed(order[-half:]), strict=True)
    return [(good, bad) for good, bad in pairs if kl_nats[bad] - kl_nats[good] >= min_gap]


def set_log_prob(logits_PX: Tensor, choices_PX: Tensor, reduction: Reduction) -> Tensor:
    """Log-probability of each row of Bernoulli choices, P; `mean` divides by their number."""
    chosen_PX = torch.where(choices_PX, logsigmoid(logits_PX), logsigmoid(-logits_PX))
    return chosen_PX.mean(-1) if reduction == "mean" else chosen_PX.sum(-1)


def action_log_prob(
    logits: tuple[Tensor, Tensor],
    action: tuple[Tensor, Tensor],
    *,
    reduction: Reduction,
    layer_weight: float,
) -> Tensor:
    """Of (tokens P x V, layers P x N), each term reduced for itself: layers are far fewer."""
    tokens_P = set_log_prob(logits[0], action[0], reduction)
    layers_P = set_log_prob(logits[1], action[1], reduction)
    return tokens_P + layer_weight * layers_P


def preference_loss(good_P: Tensor, bad_P: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (log p(S+) - log p(S-))), mean over pairs; no reference model."""
    return -logsigmoid(beta * (good_P - bad_P)).mean()


class PreferenceLoss:
    """The preference loss of a batch, over all pairs of its samples."""

    def __init__(self, options: RouterTrainingOptions) -> None:
        self._options = options

    def __call__(
        self, samples: Sequence[PreferenceSample], tokens_BV: Tensor, layers_BN: Tensor
    ) -> Tensor:
        pairs = [
            (row, good, bad)
            for row, sample in enumerate(samples)
            for good, bad in balanced_pairs(sample.kl_nats, min_gap=self._options.min_kl_gap)
        ]
        if not pairs:
            return tokens_BV.sum() * 0.0
        rows = [row for row, _, _ in pairs]
        logits = tokens_BV[rows], layers_BN[rows]
        good_P, bad_P = (
            self._log_prob(logits, [(samples[pair[0]], pair[side]) for pair in pairs])
            for side in (1, 2)
        )
        return preference_loss(good_P, bad_P, beta=self._options.beta)

    def _log_prob(
        self, logits: tuple[Tensor, Tensor], actions: Sequence[tuple[PreferenceSample, int]]
    ) -> Tensor:
        device = logits[0].device
        kept_PV = torch.stack([sample.kept_AV[idx] for sample, idx in actions]).to(device)
        runs_PN = torch.stack([sample.runs_AN[idx] for sample, idx in actions]).to(device)
        return action_log_prob(
            logits,
            (kept_PV, runs_PN),
            reduction=self._options.reduction,
            layer_weight=self._options.layer_weight,
        )
