"""Which of the frozen decoder's attention maps over the image a router is distilled from.

Shapes: H heads, S text rows, Q of them the question's, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from allrounder.measure.frozen import DenseAnswer, EncodedQuestion, FrozenModel
from allrounder.measure.plans import make_plan
from allrounder.pruning.strategy import keep_best
from allrounder.training.bank import BATCH_QUESTIONS, ImageBank

TRIAL_ROUNDS = 3
TRIAL_SAMPLES = 96
TRIAL_KEEP_RATIO = 0.06
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class AttentionTarget:
    """Attention of one layer to the image, from the last prompt row or from the question's rows.

    Attributes:
        pick: over heads and rows, their mean or their maximum.
    """

    layer_idx: int
    rows: Literal["last", "question"]
    pick: Literal["mean", "max"] = "mean"

    def by_head(self, answer: DenseAnswer) -> Tensor:
        """H x V, mean over the rows; each row summed to 1 with all the other keys."""
        count = 1 if self.rows == "last" else answer.asked.prompt.question_slot[1]
        return answer.attention[self.layer_idx][:, -count:].mean(1)

    def distribution(self, attention_HQV: Tensor) -> Tensor:
        """V from the attention of the question's Q rows, summing to 1.

        Squared, so that the many tokens with little attention do not outweigh the few with much.
        """
        rows_HSV = attention_HQV[:, -1:] if self.rows == "last" else attention_HQV
        over = rows_HSV.float().flatten(0, 1)
        map_V = (over.mean(0) if self.pick == "mean" else over.amax(0)).cpu().square()
        return map_V / map_V.sum().clamp_min(_TINY)

    def of(self, answer: DenseAnswer) -> Tensor:
        """The distribution, V, of an answer whose attention was probed in this layer."""
        return self.distribution(
            answer.attention[self.layer_idx][:, -answer.asked.prompt.question_slot[1] :]
        )


def best_target(bank: ImageBank) -> tuple[AttentionTarget, float]:
    """The target whose top tokens, kept alone from layer 0 on, diverge least; its mean KL in nats.

    Successive halving: after each round the worse three quarters are dropped, and the others are
    tried on new questions, of other images while there are any.
    """
    targets = [
        AttentionTarget(layer_idx=idx, rows=rows, pick=pick)
        for idx in range(bank.frozen.num_layers)
        for rows in ("last", "question")
        for pick in ("mean", "max")
    ]
    totals_C, seen = torch.zeros(len(targets), dtype=torch.float64), 0
    questions = bank.spread()
    for _ in range(TRIAL_ROUNDS):
        if seen:
            ranked = totals_C.argsort(stable=True)[: max(1, len(targets) // 4)].tolist()
            targets, totals_C = [targets[idx] for idx in ranked], totals_C[ranked]
        batch = list(islice(questions, TRIAL_SAMPLES)) if len(targets) > 1 else []
        if not batch:
            break
        for start in range(0, len(batch), BATCH_QUESTIONS):
            asked = batch[start : start + BATCH_QUESTIONS]
            totals_C += _kl_nats_AC(bank.frozen, asked, targets).sum(0)
        seen += len(batch)
    best = int(totals_C.argmin())
    return targets[best], float(totals_C[best] / seen)


def _kl_nats_AC(
    frozen: FrozenModel, asked: Sequence[EncodedQuestion], targets: Sequence[AttentionTarget]
) -> Tensor:
    """Of A questions by C candidate targets, at TRIAL_KEEP_RATIO of the tokens."""
    trials = []
    for answer in frozen.answer(asked, probed_layers=range(frozen.num_layers)):
        count = max(1, round(TRIAL_KEEP_RATIO * answer.num_visual))
        for target in targets:
            plan = make_plan(
                num_layers=frozen.num_layers,
                num_visual=answer.num_visual,
                kept=keep_best(target.of(answer), count).tolist(),
            )
            trials.append((answer, plan))
    kl_nats = [divergence.kl_nats for divergence in frozen.compare(trials)]
    return torch.tensor(kl_nats, dtype=torch.float64).view(len(asked), len(targets))
