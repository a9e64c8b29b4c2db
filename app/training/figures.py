"""Figures for a router's card: harm and agreement of its plans beside those of other strategies.

Every strategy gets the same samples, and the same counts of tokens and layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from app.core import Plan
from app.cost import cost_of
from app.pruning.base import Context, Strategy, View
from app.pruning.compose import Composed, label, needs_router
from app.pruning.fastv import FastV
from app.pruning.par import Par
from app.pruning.random import Random
from app.pruning.shortgpt import ShortGPT
from app.router.model import MetaRouter, router_flops
from app.router.store import Calibration
from app.training.bank import PictureBank
from app.training.measure import DenseAnswer
from app.training.trials import plan_by, view_of

# Shares of visual tokens kept and of layers skipped.
SIZES = ((0.06, 0.0), (0.12, 0.0), (0.12, 0.125), (0.25, 0.0), (0.25, 0.25))
FASTV_LAYERS = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its standard error over samples."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        return cls(mean=mean, standard_error=math.sqrt(variance / len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy at one size; `cost` is its share of dense prefill FLOPs, the choice included."""

    tokens: float
    layers: float
    name: str
    cost: Estimate
    kl_nats: Estimate
    agreement: Estimate


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The table, and KL with a wrong question minus KL with the right one, pooled over sizes."""

    num_samples: int
    rows: tuple[Row, ...]
    question_gain: Estimate


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    strategy: Strategy
    wrong_question: bool = False


def measure_figures(
    network: MetaRouter, bank: PictureBank, calibration: Calibration
) -> Figures:
    """Runs every strategy at every size over the bank's questions."""
    frozen = bank.frozen
    context = Context(
        geometry=frozen.adapter.geometry,
        router_candidates=network.config.candidates,
        block_influence=calibration.block_influence,
    )
    entries = _entries(frozen.num_layers)
    keys = [(size, entry) for size in SIZES for entry in entries]
    tallies = [_Tally() for _ in keys]
    probed = [layer - 1 for layer in FASTV_LAYERS if layer < frozen.num_layers]
    done = 0
    with tqdm(total=bank.num_questions, desc="figures", unit="sample") as bar:
        for batch in bank.batches():
            answers = frozen.answer([asked for _, asked in batch], probed_layers=probed)
            for number, answer in enumerate(answers):
                other = answers[(number + len(answers) // 2) % len(answers)]
                own, swapped = (
                    view_of(
                        answer,
                        frozen,
                        context,
                        seed=done + number,
                        network=network,
                        question_QD=frozen.question_rows(source.asked),
                    )
                    for source in (answer, other)
                )
                plans = [
                    _plan(entry, swapped if entry.wrong_question else own, size)
                    for size, entry in keys
                ]
                _tally(bank, network, answer, plans, tallies, keys)
            done += len(batch)
            bar.update(len(batch))
    return _figures(keys, tallies, num_samples=done)
