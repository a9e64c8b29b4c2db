"""Where a frozen decoder looks at the image, and in which layer that look tells best what matters.

Shapes: H heads, S text rows, Q of them the question's, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from allrounder.pruning.strategy import keep_best
from allrounder.training.bank import BATCH_QUESTIONS, PictureBank
from allrounder.training.frozen import Asked, DenseAnswer, FrozenModel, make_plan

TRIAL_ROUNDS = 3
TRIAL_SAMPLES = 96
TRIAL_KEEP_RATIO = 0.06
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Look:
    """Attention of one layer to the image, from the last prompt row or from the question's rows.

    Attributes:
        pick: over heads and rows, their mean, or what any of them looks at most.
    """

    layer_idx: int
    rows: Literal["last", "question"]
    pick: Literal["mean", "max"] = "mean"

    def at_image(self, answer: DenseAnswer) -> Tensor:
        """H x V, mean over the rows; each row summed to 1 with all the other keys."""
        count = 1 if self.rows == "last" else answer.asked.prompt.question_slot[1]
        return answer.attention[self.layer_idx][:, -count:].mean(1)

    def map(self, attention_HQV: Tensor) -> Tensor:
        """V from the attention of the question's Q rows.

        Squared, so that the many tokens that are hardly looked at do not outweigh the few that
        are, and summing to 1.
        """
        rows_HSV = attention_HQV[:, -1:] if self.rows == "last" else attention_HQV
        over = rows_HSV.float().flatten(0, 1)
        map_V = (over.mean(0) if self.pick == "mean" else over.amax(0)).cpu().square()
        return map_V / map_V.sum().clamp_min(_TINY)

    def of(self, answer: DenseAnswer) -> Tensor:
        """V, from an answer whose attention was probed in this layer."""
        return self.map(
            answer.attention[self.layer_idx][:, -answer.asked.prompt.question_slot[1] :]
        )


def best_look(bank: PictureBank) -> tuple[Look, float]:
    """The look whose top tokens, kept alone from layer 0 on, harm the answer least; its mean KL.

    A race: after each round the worse three quarters leave, and those that stay are tried on new
    questions, of other pictures while there are any, so that the close ones are told apart on many.
    """
    looks = [
        Look(layer_idx=idx, rows=rows, pick=pick)
        for idx in range(bank.frozen.num_layers)
        for rows in ("last", "question")
        for pick in ("mean", "max")
    ]
    totals_L, seen = torch.zeros(len(looks), dtype=torch.float64), 0
    questions = bank.spread()
    for _ in range(TRIAL_ROUNDS):
        if seen:
            ranked = totals_L.argsort(stable=True)[: max(1, len(looks) // 4)].tolist()
            looks, totals_L = [looks[idx] for idx in ranked], totals_L[ranked]
        batch = list(islice(questions, TRIAL_SAMPLES)) if len(looks) > 1 else []
        if not batch:
            break
        for start in range(0, len(batch), BATCH_QUESTIONS):
            asked = batch[start : start + BATCH_QUESTIONS]
            totals_L += _harms_AL(bank.frozen, asked, looks).sum(0)
        seen += len(batch)
    best = int(totals_L.argmin())
    return looks[best], float(totals_L[best] / seen)


def _harms_AL(frozen: FrozenModel, asked: Sequence[Asked], looks: Sequence[Look]) -> Tensor:
    """KL in nats of A questions by L looks, at TRIAL_KEEP_RATIO of the tokens."""
    trials = []
    for answer in frozen.answer(asked, probed_layers=range(frozen.num_layers)):
        count = max(1, round(TRIAL_KEEP_RATIO * answer.num_visual))
        for look in looks:
            plan = make_plan(
                num_layers=frozen.num_layers,
                num_visual=answer.num_visual,
                kept=keep_best(look.of(answer), count).tolist(),
            )
            trials.append((answer, plan))
    kl_A = torch.tensor([harm.kl_nats for harm in frozen.compare(trials)], dtype=torch.float64)
    return kl_A.view(len(asked), len(looks))
