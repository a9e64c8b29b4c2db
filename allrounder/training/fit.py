"""Optimises a router over measured samples: batches of its inputs, AdamW, a cosine.

Shapes: B samples, V visual tokens, Q question rows, D model width, N candidate layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from allrounder.router.network import MetaRouter
from allrounder.training.bank import ImageBank
from allrounder.training.muon import BatchedMuon

GRADIENT_CLIP = 1.0
WARMUP_STEPS = 20


class RouterSample(Protocol):
    """What a router reads, and over which tokens it scores."""

    @property
    def image_idx(self) -> int: ...
    @property
    def question_ids(self) -> tuple[int, ...]: ...
    @property
    def target_V(self) -> Tensor: ...


S = TypeVar("S", bound=RouterSample)
Loss = Callable[[Sequence[S], Tensor, Tensor], Tensor]
"""(samples, token logits B x V, layer logits B x N) -> the mean loss of these samples."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs, batch size and learning rates; `name` labels the progress bar."""

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    muon_learning_rate: float = 0.0


def fit(
    network: MetaRouter,
    samples: Sequence[S],
    bank: ImageBank,
    loss_of: Loss[S],
    schedule: Schedule,
) -> float:
    """Trains in place; returns the mean loss over the last epoch."""
    steps = schedule.epochs * -(-len(samples) // schedule.batch_size)
    optimisers = _optimisers(network, schedule)
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    done = 0
    network.train().requires_grad_(True)
    last: list[float] = []
    with tqdm(total=steps, desc=schedule.name, unit="step") as bar:
        for epoch in range(schedule.epochs):
            last = []
            for batch in _batches(samples, schedule, epoch):
                for optimiser, peak in zip(optimisers, peaks, strict=True):
                    optimiser.zero_grad(set_to_none=True)
                    optimiser.param_groups[0]["lr"] = peak * _rate(done, steps)
                last.append(_backward(network, batch, bank, loss_of))
                nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
                for optimiser in optimisers:
                    optimiser.step()
                done += 1
                bar.update()
                bar.set_postfix(loss=f"{sum(last) / len(last):.4f}")
    network.eval()
    return sum(last) / max(len(last), 1)


def _optimisers(network: MetaRouter, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices where its rate is given."""
    weights = dict(network.named_parameters())
    matrices = [
        weight
        for name, weight in weights.items()
        if schedule.muon_learning_rate
        and weight.ndim == 2
        and len(weight) > 1
        and name.endswith(".weight")
    ]
    others = [weight for weight in weights.values() if all(weight is not each for each in matrices)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    ]
    if matrices:
        optimisers.append(BatchedMuon(matrices, lr=schedule.muon_learning_rate))
    return optimisers


def _rate(step: int, num_steps: int) -> float:
    """A short warm-up, then a cosine to zero."""
    if step < WARMUP_STEPS:
        return 0.1 + 0.9 * step / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(num_steps - WARMUP_STEPS, 1)))


def router_inputs(
    samples: Sequence[RouterSample], bank: ImageBank
) -> tuple[Tensor, Tensor, Tensor]:
    """Visual tokens B x V x D, padded question rows B x Q x D and which of those are real."""
    adapter = bank.frozen.adapter
    visual_BVD = torch.stack([bank.visual(sample.image_idx) for sample in samples])
    questions = [adapter.embed(sample.question_ids).clone() for sample in samples]
    question_BQD = pad_sequence(questions, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in questions], device=question_BQD.device)
    mask_BQ = torch.arange(question_BQD.shape[1], device=lengths.device) < lengths[:, None]
    return visual_BVD.float(), question_BQD.float(), mask_BQ


def _batches(samples: Sequence[S], schedule: Schedule, epoch: int) -> Iterator[list[S]]:
    generator = torch.Generator().manual_seed(schedule.seed * 1000 + epoch)
    order = torch.randperm(len(samples), generator=generator).tolist()
    for start in range(0, len(order), schedule.batch_size):
        yield [samples[idx] for idx in order[start : start + schedule.batch_size]]


def _backward(network: MetaRouter, batch: Sequence[S], bank: ImageBank, loss_of: Loss[S]) -> float:
    """Gradients of the batch's mean loss; images of different token counts run apart."""
    by_size: defaultdict[int, list[S]] = defaultdict(list)
    for sample in batch:
        by_size[len(sample.target_V)].append(sample)
    total = 0.0
    for alike in by_size.values():
        tokens_BV, layers_BN = network(*router_inputs(alike, bank))
        loss = loss_of(alike, tokens_BV, layers_BN) * (len(alike) / len(batch))
        loss.backward()
        total += loss.item()
    return total
