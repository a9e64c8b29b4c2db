"""Runs items through an engine runner under (strategy, budget) settings and measures.

Quality runs in mixed batches; latency is timed on single requests, all settings interleaved, so
that a busy machine slows them alike.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from app.budget import FlopsShare
from app.core import BudgetRequest, ChatRequest, ChatResult, SamplingParams
from app.engine.base import Runner
from app.engine.driving import drive
from app.errors import BudgetTooSmall
from app.evaluation.base import Item

logger = logging.getLogger(__name__)

DENSE = "none"
_BATCH = 16
_MAX_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A strategy at a budget share."""

    strategy: str
    budget: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All results of one setting, in the items' order."""

    setting: Setting
    results: tuple[ChatResult, ...]
    latency_seconds: tuple[float, ...] = ()

    @property
    def median_seconds(self) -> float | None:
        return statistics.median(self.latency_seconds) if self.latency_seconds else None


def settings_of(strategies: Sequence[str], budgets: Sequence[float]) -> list[Setting]:
    """The grid to run; `none` exists only at budget 1."""
    return [
        Setting(strategy=strategy, budget=budget)
        for strategy in strategies
        for budget in budgets
        if strategy != DENSE or budget == 1
    ]


def run_setting(
    runner: Runner, items: Sequence[Item], setting: Setting, *, tick: Callable[[], object]
) -> tuple[ChatResult, ...]:
    """Answer every item. Raises BudgetTooSmall where the strategy cannot meet the budget."""
    results: list[ChatResult] = []
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        requests = [_request(item, setting, start + idx) for idx, item in enumerate(batch)]
        results += drive(runner, requests).results
        for _ in batch:
            tick()
    return tuple(results)


def time_settings(
    runner: Runner, items: Sequence[Item], settings: Sequence[Setting], *, rounds: int
) -> dict[Setting, tuple[float, ...]]:
    """Seconds from submission to answer of single requests, settings taking turns."""
    seconds: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for round_idx in range(rounds):
        item = items[round_idx % len(items)]
        for setting in settings:
            started = time.perf_counter()
            drive(runner, [_request(item, setting, round_idx)])
            seconds[setting].append(time.perf_counter() - started)
    return {setting: tuple(values) for setting, values in seconds.items()}


def evaluate(
    runner: Runner,
    items: Sequence[Item],
    settings: Iterable[Setting],
    *,
    timed_rounds: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> list[Trial]:
    """Run every setting that the strategies can serve; the others are named in the log."""
    results: dict[Setting, tuple[ChatResult, ...]] = {}
    for setting in settings:
        try:
            results[setting] = run_setting(runner, items, setting, tick=tick)
        except BudgetTooSmall as err:
            logger.warning("%s at %g left out: %s", setting.strategy, setting.budget, err.message)
    timed = time_settings(runner, items, list(results), rounds=timed_rounds)
    return [
        Trial(setting=setting, results=found, latency_seconds=timed[setting])
        for setting, found in results.items()
    ]


def _request(item: Item, setting: Setting, idx: int) -> ChatRequest:
    return ChatRequest(
        id=f"item-{idx}",
        images=(item.image,),
        question=item.question,
        budget=BudgetRequest(
            form=FlopsShare(share=setting.budget),
            requested=setting.budget,
            strategy=setting.strategy,
        ),
        sampling=SamplingParams(max_tokens=_MAX_TOKENS),
        arrival=time.monotonic(),
    )
