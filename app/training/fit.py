"""Optimises a router over measured samples: batches of its inputs, AdamW, a cosine.

Shapes: B samples, V visual tokens, Q question rows, D model width, N candidate layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from app.router.model import MetaRouter
from app.training.bank import PictureBank
from app.training.collect import Measured

GRADIENT_CLIP = 1.0
WARMUP_STEPS = 20

Loss = Callable[[Sequence[Measured], Tensor, Tensor], Tensor]
"""(samples, token logits B x V, layer logits B x N) -> the mean loss of these samples."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast; `name` labels the progress bar."""

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


def fit(
    network: MetaRouter,
    samples: Sequence[Measured],
    bank: PictureBank,
    loss_of: Loss,
    schedule: Schedule,
) -> float:
    """Trains in place; returns the mean loss over the last epoch."""
    steps = schedule.epochs * -(-len(samples) // schedule.batch_size)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    rates = torch.optim.lr_scheduler.SequentialLR(
        optimiser,
        [
            torch.optim.lr_scheduler.LinearLR(optimiser, 0.1, total_iters=WARMUP_STEPS),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps - WARMUP_STEPS, 1)),
        ],
        milestones=[WARMUP_STEPS],
    )
    network.train().requires_grad_(True)
    last: list[float] = []
    with tqdm(total=steps, desc=schedule.name, unit="step") as bar:
        for epoch in range(schedule.epochs):
            last = []
            for batch in _batches(samples, schedule, epoch):
                optimiser.zero_grad(set_to_none=True)
                last.append(_backward(network, batch, bank, loss_of))
                nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
                optimiser.step()
                rates.step()
                bar.update()
                bar.set_postfix(loss=f"{sum(last) / len(last):.4f}")
    network.eval()
    return sum(last) / max(len(last), 1)


def router_inputs(samples: Sequence[Measured], bank: PictureBank) -> tuple[Tensor, Tensor, Tensor]:
    """Visual tokens B x V x D, padded question rows B x Q x D and which of those are real."""
    adapter = bank.frozen.adapter
    visual_BVD = torch.stack([bank.visual(sample.picture_idx) for sample in samples])
    questions = [adapter.embed(sample.question_ids).clone() for sample in samples]
    question_BQD = pad_sequence(questions, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in questions], device=question_BQD.device)
    mask_BQ = torch.arange(question_BQD.shape[1], device=lengths.device) < lengths[:, None]
    return visual_BVD.float(), question_BQD.float(), mask_BQ


def _batches(
    samples: Sequence[Measured], schedule: Schedule, epoch: int
) -> Iterator[list[Measured]]:
    generator = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
    order = torch.randperm(len(samples), generator=generator).tolist()
    for start in range(0, len(order), schedule.batch_size):
        yield [samples[idx] for idx in order[start : start + schedule.batch_size]]


def _backward(
    network: MetaRouter, batch: Sequence[Measured], bank: PictureBank, loss_of: Loss
) -> float:
    """Gradients of the batch's mean loss; images of different token counts run apart."""
    by_size: defaultdict[int, list[Measured]] = defaultdict(list)
    for sample in batch:
        by_size[len(sample.target_V)].append(sample)
    total = 0.0
    for alike in by_size.values():
        tokens_BV, layers_BN = network(*router_inputs(alike, bank))
        loss = loss_of(alike, tokens_BV, layers_BN) * (len(alike) / len(batch))
        loss.backward()
        total += loss.item()
    return total
