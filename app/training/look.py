"""Where a frozen decoder looks at the image, and in which layer that look tells best what matters.

Shapes: H heads, S text rows, V visual tokens.
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
TRIAL_KEEP_RATIO = 0.12


@dataclass(frozen=True, kw_only=True)
class Look:
    """Attention of one layer to the image, from the last prompt row or from the question's rows."""

    layer_idx: int
    rows: Literal["last", "question"]

    def at_image(self, answer: DenseAnswer) -> Tensor:
        """H x V, mean over the rows; each row summed to 1 with all the other keys."""
        count = 1 if self.rows == "last" else answer.asked.prompt.question_slot[1]
        return answer.attention[self.layer_idx][:, -count:].mean(1)

    def map(self, answer: DenseAnswer) -> Tensor:
        """V, mean over the heads, summing to 1."""
        attention_V = self.at_image(answer).mean(0).float().cpu()
        return attention_V / attention_V.sum().clamp_min(1e-12)


def best_look(bank: PictureBank) -> tuple[Look, float]:
    """The look whose top tokens, kept alone from layer 0 on, harm the answer least; its mean KL."""
    frozen = bank.frozen
    layers = range(frozen.num_layers)
    looks = [Look(layer_idx=idx, rows=rows) for idx in layers for rows in ("last", "question")]
    totals, seen = torch.zeros(len(looks), dtype=torch.float64), 0
    for batch in bank.batches():
        answers = frozen.answer([asked for _, asked in batch], probed_layers=layers)
        trials = []
        for answer in answers:
            count = max(1, round(TRIAL_KEEP_RATIO * answer.num_visual))
            kept_rows = (keep_best(look.map(answer), count).tolist() for look in looks)
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
