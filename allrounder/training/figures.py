"""Figures for a router's card: divergence of its plans beside that of other strategies.

Every strategy gets the same samples and the same counts of tokens and layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm import tqdm

from allrounder.core import Plan
from allrounder.cost import cost_of
from allrounder.measure.divergence import Divergence
from allrounder.measure.frozen import DenseAnswer
from allrounder.measure.plans import plan_by, view_of
from allrounder.measure.statistics import Estimate, sample_mean
from allrounder.pruning.fastv import FastV
from allrounder.pruning.par import Par
from allrounder.pruning.random import Random
from allrounder.pruning.shortgpt import ShortGPT
from allrounder.pruning.strategy import (
    Composed,
    Context,
    Strategy,
    View,
    looking_flops,
    needs_router,
)
from allrounder.router.network import MetaRouter, router_flops
from allrounder.router.weights import Calibration
from allrounder.training.bank import ImageBank

# Shares of visual tokens kept and of layers skipped.
SIZES = ((0.06, 0.0), (0.12, 0.0), (0.12, 0.125), (0.25, 0.0), (0.25, 0.25))
FASTV_LAYERS = (2, 4, 8)
OWN, WRONG = "par", "par, another sample's question"


@dataclass(frozen=True, kw_only=True)
class StrategyFigures:
    """One strategy at one size; `cost` is its share of dense prefill FLOPs, the choice included."""

    size: tuple[float, float]
    name: str
    cost: Estimate
    kl_nats: Estimate
    agreement: Estimate


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The table, and by size the paired KL that a wrong question adds to the router's plans."""

    num_samples: int
    rows: tuple[StrategyFigures, ...]
    question_gain: dict[tuple[float, float], Estimate]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    size: tuple[float, float]
    name: str
    answer: DenseAnswer
    plan: Plan


class FigureTable:
    """Collects trials of every strategy at every size."""

    def __init__(self, network: MetaRouter, bank: ImageBank, calibration: Calibration) -> None:
        self._network = network
        self._bank = bank
        self._geometry = bank.frozen.adapter.geometry
        self._context = Context(
            geometry=self._geometry,
            router_candidates=network.config.candidates,
            block_influence=calibration.block_influence,
        )
        self._found: defaultdict[tuple[tuple[float, float], str], list[tuple[float, Divergence]]]
        self._found = defaultdict(list)

    def measure(self) -> Figures:
        frozen, done = self._bank.frozen, 0
        probed = [layer - 1 for layer in FASTV_LAYERS if layer < frozen.num_layers]
        with tqdm(total=self._bank.num_questions, desc="figures", unit="sample") as bar:
            for batch in self._bank.batches():
                answers = frozen.answer([asked for _, asked in batch], probed_layers=probed)
                # Half a batch away lies another image's question, but for tiny data.
                shift = len(answers) // 2
                others = answers[shift:] + answers[:shift]
                trials = [
                    trial
                    for seed, (answer, other) in enumerate(zip(answers, others, strict=True), done)
                    for trial in self._trials(answer, other, seed)
                ]
                divergences = frozen.compare([(trial.answer, trial.plan) for trial in trials])
                for trial, divergence in zip(trials, divergences, strict=True):
                    cost = cost_of(self._geometry, trial.answer.asked.prompt.shape, trial.plan)
                    self._found[trial.size, trial.name].append((cost.prefill_ratio, divergence))
                done += len(batch)
                bar.update(len(batch))
        return self._figures(done)

    def _trials(self, answer: DenseAnswer, other: DenseAnswer, seed: int) -> Iterator[_Trial]:
        own, wrong = (
            view_of(
                answer,
                self._bank.frozen,
                self._context,
                seed=seed,
                network=self._network,
                question_QD=self._bank.frozen.question_rows(source.asked),
            )
            for source in (answer, other)
        )
        for size in SIZES:
            yield self._trial(size, OWN, answer, own, Par())
            yield self._trial(size, WRONG, answer, wrong, Par())
            yield self._trial(size, "random", answer, own, Random())
            for layer in FASTV_LAYERS:
                if layer < self._geometry.num_layers:
                    strategy = Composed(left=FastV(layer=layer), right=ShortGPT())
                    yield self._trial(size, f"fastv K={layer} + shortgpt", answer, own, strategy)

    def _trial(
        self,
        size: tuple[float, float],
        name: str,
        answer: DenseAnswer,
        view: View,
        strategy: Strategy,
    ) -> _Trial:
        tokens, layers = size
        plan = plan_by(
            strategy,
            view,
            num_kept=max(1, round(tokens * answer.num_visual)),
            num_skipped=round(layers * self._geometry.num_layers),
        )
        shape = answer.asked.prompt.shape
        chosen = 0
        if strategy.token_part is not None:
            chosen += looking_flops(strategy.token_part, self._geometry, shape, plan.points)
        if needs_router(strategy):
            chosen += router_flops(
                self._network.config,
                num_visual=shape.num_visual,
                num_question=shape.num_question,
            )
        return _Trial(size=size, name=name, answer=answer, plan=replace(plan, choice_flops=chosen))

    def _figures(self, num_samples: int) -> Figures:
        rows = tuple(
            StrategyFigures(
                size=size,
                name=name,
                cost=sample_mean([cost for cost, _ in entries]),
                kl_nats=sample_mean([each.kl_nats for _, each in entries]),
                agreement=sample_mean([float(each.agrees) for _, each in entries]),
            )
            for (size, name), entries in self._found.items()
        )
        gain = {
            size: sample_mean(
                [
                    wrong.kl_nats - own.kl_nats
                    for (_, wrong), (_, own) in zip(
                        self._found[size, WRONG], self._found[size, OWN], strict=True
                    )
                ]
            )
            for size in SIZES
        }
        return Figures(num_samples=num_samples, rows=rows, question_gain=gain)
