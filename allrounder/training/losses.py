"""What a router is trained on: the frozen model's attention first, if wanted, then preferences.

Shapes: B samples, P pairs, V visual tokens, N candidate layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allrounder.training.collect import Measured
from allrounder.training.fit import Sample
from allrounder.training.options import RouterTrainingOptions
from allrounder.training.preferences import action_log_prob, balanced_pairs, preference_loss


def attention_loss(samples: Sequence[Sample], tokens_BV: Tensor, _: Tensor) -> Tensor:
    """Cross-entropy of softmax(token logits) against the frozen model's attention."""
    target_BV = torch.stack([sample.target_V for sample in samples]).to(tokens_BV)
    return -(target_BV * tokens_BV.log_softmax(-1)).sum(-1).mean()


class PreferenceLoss:
    """The preference loss of a batch, over all pairs of its samples."""

    def __init__(self, options: RouterTrainingOptions) -> None:
        self._options = options

    def __call__(self, samples: Sequence[Measured], tokens_BV: Tensor, layers_BN: Tensor) -> Tensor:
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
        self, logits: tuple[Tensor, Tensor], actions: Sequence[tuple[Measured, int]]
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
