"""Where a frozen decoder looks at the image, and in which layer that look tells best what matters.

Shapes: H heads, S text rows, Q of them the question's, V visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from app.pruning.base import keep_best
from app.training.bank import PictureBank
from app.training.measure import DenseAnswer, make_plan

TRIAL_SAMPLES = 64
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
    """The look whose top tokens, kept alone from layer 0 on, harm the answer least; its mean KL."""
    frozen = bank.frozen
    layers = range(frozen.num_layers)
    looks = [
        Look(layer_idx=idx, rows=rows, pick=pick)
        for idx in layers
        for rows in ("last", "question")
        for pick in ("mean", "max")
    ]
    totals, seen = torch.zeros(len(looks), dtype=torch.float64), 0
    for batch in bank.batches():
        answers = frozen.answer([asked for _, asked in batch], probed_layers=layers)
        trials = []
        for answer in answers:
            count = max(1, round(TRIAL_KEEP_RATIO * answer.num_visual))
            kept_rows = (keep_best(look.of(answer), count).tolist() for look in looks)
            trials += [
                (
                    answer,
                    make_plan(
                        num_layers=frozen.num_layers, num_visual=answer.num_visual, kept=kept
                    ),
                )
                for kept in kept_rows
            ]
        harms = frozen.compare(trials)
        kl_AL = torch.tensor([harm.kl_nats for harm in harms], dtype=torch.float64)
        totals += kl_AL.view(len(answers), len(looks)).sum(0)
        seen += len(answers)
        if seen >= TRIAL_SAMPLES:
            break
    best = int(totals.argmin())
    return looks[best], float(totals[best] / seen)
