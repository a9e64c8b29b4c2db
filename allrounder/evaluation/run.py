"""Runs a grid setting by setting, each once: what a store holds is not run again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from allrounder.errors import ContextLengthExceeded, InvalidField
from allrounder.evaluation.benchmark import Benchmark, Item
from allrounder.evaluation.cell_store import FORMAT, CellStore
from allrounder.evaluation.defaults import SELECTION_SEED
from allrounder.evaluation.grid import Setting
from allrounder.evaluation.subjects import Subject, Subjects, reads_router
from allrounder.evaluation.trials import (
    MAX_TOKENS,
    DenseAnswers,
    Tick,
    Trial,
    run_setting,
    time_settings,
)
from allrounder.measure.environment import processor
from allrounder.measure.statistics import mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a grid is run.

    Attributes:
        selection: items at most on which a searched knob is chosen.
        timed: rounds of single requests.
        with_kl: whether KL to the dense answer is measured, where the model gives logits.
    """

    seed: int = 0
    selection: int = 400
    timed: int = 0
    with_kl: bool = True


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A searched knob: what was tried, with its accuracy on other items, or why not."""

    knob: str
    value: Any
    tried: dict[str, float | str]
    num_items: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A setting with its trial, or with the reason why there is none.

    Attributes:
        setting: as it was run: a searched knob is set.
        seconds: of single requests, by round.
    """

    setting: Setting
    trial: Trial | None = None
    reason: str | None = None
    choice: SearchResult | None = None
    seconds: tuple[float, ...] = ()


class Evaluation:
    """One benchmark, one grid, one store."""

    def __init__(
        self,
        subjects: Subjects,
        benchmark: Benchmark,
        options: RunOptions,
        store: CellStore,
        *,
        tick: Tick = lambda _: None,
    ) -> None:
        self._subjects = subjects
        self._benchmark = benchmark
        self._options = options
        self._store = store
        self._tick = tick
        self._others: Sequence[Item] | None = None
        self.items: Sequence[Item] = ()

    def run(self, grid: Sequence[Setting]) -> list[Finished]:
        """Every setting in order, then all that could be served timed in turns."""
        limit = max(setting.num_items for setting in grid)
        self.items = self._benchmark.items(limit=limit, seed=self._options.seed)
        self._dense = DenseAnswers(self._subjects[None].quality, self.items)
        finished = [self._finish(setting) for setting in grid]
        return self._timed(finished) if self._options.timed else finished

    def _finish(self, setting: Setting) -> Finished:
        if setting.contender.search is None:
            return self._tested(setting, None)
        choice = self._choose(setting)
        if choice.value is None:
            reason = "; ".join(f"{choice.knob}={key}: {why}" for key, why in choice.tried.items())
            self._tick(setting.num_items)
            return self._refused(setting, reason or "no items to choose on but those of the test")
        return self._tested(setting.tried(choice.value, num_items=setting.num_items), choice)

    def _tested(self, setting: Setting, choice: SearchResult | None) -> Finished:
        found = self._trial(
            setting,
            self.items[: setting.num_items],
            self._options.seed,
            with_kl=self._options.with_kl,
        )
        if isinstance(found, str):
            return self._refused(setting, found)
        return Finished(setting=setting, trial=found, choice=choice)

    def _refused(self, setting: Setting, reason: str) -> Finished:
        logger.warning("%s is not possible: %s", setting, reason)
        return Finished(setting=setting, reason=reason)

    def _choose(self, setting: Setting) -> SearchResult:
        """The value with the best mean grade on other images; the first of equals."""
        search = setting.contender.search
        assert search is not None, "only a search chooses"
        seed, items = self._options.seed + SELECTION_SEED, self._selection_items()
        tried: dict[str, float | str] = {}
        best: tuple[float, Any] | None = None
        for value in search.values if items else ():
            found = self._trial(
                setting.tried(value, num_items=len(items)), items, seed, with_kl=False
            )
            if isinstance(found, str):
                tried[str(value)] = found
                continue
            accuracy = mean(grades_of(items, found))
            tried[str(value)] = accuracy
            if best is None or accuracy > best[0]:
                best = (accuracy, value)
        value = best[1] if best else None
        return SearchResult(
            knob=search.knob, value=value, tried=tried, num_items=len(items), seed=seed
        )

    def _selection_items(self) -> Sequence[Item]:
        """Of another seed, less those that show an image of the test."""
        if self._others is None:
            shown = {item.image.digest for item in self.items}
            drawn = self._benchmark.items(
                limit=self._options.selection, seed=self._options.seed + SELECTION_SEED
            )
            self._others = [item for item in drawn if item.image.digest not in shown]
        return self._others

    def _trial(
        self, setting: Setting, items: Sequence[Item], seed: int, *, with_kl: bool
    ) -> Trial | str:
        """From the store, or run and stored; the reason where the budget cannot be served."""
        subject = self._subjects[setting.contender.router]
        with_kl = with_kl and subject.has_logits
        key = self._key(setting, items, seed, subject, with_kl=with_kl)
        body = self._store.find(key)
        if body is None:
            body = self._run(subject, setting, items, with_kl=with_kl)
            self._store.keep(key, body)
        else:
            self._tick(len(items))
        return body["reason"] if body["reason"] else Trial.of_json(body["trial"])

    def _run(
        self, subject: Subject, setting: Setting, items: Sequence[Item], *, with_kl: bool
    ) -> dict[str, Any]:
        ticked = 0

        def tick(count: int) -> None:
            nonlocal ticked
            ticked += count
            self._tick(count)

        reference = self._dense if with_kl else None
        try:
            trial = run_setting(subject.quality, items, setting, reference=reference, tick=tick)
        except (InvalidField, ContextLengthExceeded) as err:
            self._tick(len(items) - ticked)
            return {"reason": err.message, "trial": None}
        return {"reason": None, "trial": trial.as_json()}

    def _key(
        self, setting: Setting, items: Sequence[Item], seed: int, subject: Subject, *, with_kl: bool
    ) -> dict[str, Any]:
        model, contender = subject.quality.capabilities(), setting.contender
        reads = reads_router(contender.strategy, model.geometry)
        return {
            "kind": "trial",
            "format": FORMAT,
            "model": model.fingerprint,
            "dtype": model.dtype,
            "device": model.device.partition(":")[0],
            "router": subject.router_key if reads else None,
            "benchmark": self._benchmark.name,
            "seed": seed,
            "limit": len(items),
            "items": _items_digest(items),
            "strategy": contender.strategy,
            "options": dict(contender.options),
            "budget": setting.budget.wire,
            "max_tokens": MAX_TOKENS,
            "harm": with_kl,
        }

    def _timed(self, finished: Sequence[Finished]) -> list[Finished]:
        """Timings hold for the whole set that took turns, so they are kept together."""
        served = [each for each in finished if each.trial is not None]
        if not served:
            return list(finished)
        device = processor()
        key = {
            "kind": "timing",
            "format": FORMAT,
            "cpu": device["cpu"],
            "gpu": device["gpu"],
            "threads": device["threads"],
            "rounds": self._options.timed,
            "runs": [self._timing_key(each.setting) for each in served],
        }
        body = self._store.find(key)
        if body is None:
            runs = [
                (self._subjects[each.setting.contender.router].timed, each.setting)
                for each in served
            ]
            # Only questions that every setting has answered: all of these can be served.
            common = self.items[: min(each.setting.num_items for each in served)]
            seconds = time_settings(runs, common, rounds=self._options.timed, tick=self._tick)
            body = {"seconds": seconds}
            self._store.keep(key, body)
        else:
            self._tick(len(served) * self._options.timed)
        of_setting = dict(zip((each.setting for each in served), body["seconds"], strict=True))
        return [replace(each, seconds=tuple(of_setting.get(each.setting, ()))) for each in finished]

    def _timing_key(self, setting: Setting) -> dict[str, Any]:
        subject = self._subjects[setting.contender.router]
        items = self.items[: self._options.timed]
        return self._key(setting, items, self._options.seed, subject, with_kl=False)


def num_ticks(grid: Sequence[Setting], options: RunOptions) -> int:
    """Questions that a run asks at most, for a progress bar."""
    searched = sum(
        len(setting.contender.search.values) for setting in grid if setting.contender.search
    )
    asked = sum(setting.num_items for setting in grid) + searched * options.selection
    return asked + options.timed * len(grid)


def grades_of(items: Sequence[Item], trial: Trial) -> list[float]:
    """From 0 to 1, of the first items, as many as the trial answered."""
    return [float(item.grade(answer)) for item, answer in zip(items, trial.answers, strict=False)]


def _items_digest(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.image.digest}\0{item.question}\0".encode())
    return digest.hexdigest()[:16]
