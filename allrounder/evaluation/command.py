"""From a grid as the command line spells it to a report: parses, checks, runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allrounder.core import StrategyInfo
from allrounder.errors import InvalidField
from allrounder.evaluation.benchmark import Benchmark
from allrounder.evaluation.cell_store import CellStore
from allrounder.evaluation.cells import cells_of, infeasible_of
from allrounder.evaluation.grid import (
    OTHERS,
    Contender,
    Setting,
    parse_contender,
    parse_grid_budget,
    settings_of,
    with_routers,
)
from allrounder.evaluation.report import Report
from allrounder.evaluation.run import Evaluation, RunOptions, num_ticks
from allrounder.evaluation.subjects import Subjects, check_knobs, level_of, reads_router
from allrounder.evaluation.trials import Tick

logger = logging.getLogger(__name__)

CELLS = "cells"


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """A grid in the command line's words.

    Attributes:
        routers: folders of the routers under test by name; without any the model's own is used.
        skips_unknown: strategies that the registry does not hold are left out, with a logged line.
    """

    strategies: Sequence[str]
    budgets: Sequence[str]
    limits: Mapping[str, int]
    routers: Mapping[str, Path] = field(default_factory=dict)
    skips_unknown: bool = False
    options: RunOptions = field(default_factory=RunOptions)


class GridJob:
    """A checked grid over loaded subjects. Raises InvalidField where it cannot be parsed."""

    def __init__(self, subjects: Subjects, benchmark: Benchmark, spec: GridSpec) -> None:
        self._subjects = subjects
        self._benchmark = benchmark
        self._options = spec.options
        self._model = subjects[None].quality.capabilities()
        self._strategies = _strategies_of(subjects)
        self._levels: dict[str, str] = {}
        rows = [parse_contender(text) for text in spec.strategies]
        rows = [row for row in rows if self._is_known(row, skips=spec.skips_unknown)]
        reads = {row.strategy: reads_router(row.strategy, self._model.geometry) for row in rows}
        self._reads = reads
        self._rows = with_routers(rows, list(spec.routers), reads)
        num_visual = self._model.visual_tokens
        budgets = [parse_grid_budget(text, num_visual=num_visual) for text in spec.budgets]
        self.grid: list[Setting] = settings_of(self._rows, budgets, limits=spec.limits)
        if not self.grid:
            raise InvalidField("nothing to run", param="strategies")

    @property
    def num_ticks(self) -> int:
        return num_ticks(self.grid, self._options)

    def run(self, store: CellStore, *, environment: Mapping[str, Any], tick: Tick) -> Report:
        evaluation = Evaluation(self._subjects, self._benchmark, self._options, store, tick=tick)
        finished = evaluation.run(self.grid)
        facts = {row.label: self._facts(row) for row in self._rows}
        return Report(
            run={
                "benchmark": self._benchmark.name,
                "seed": self._options.seed,
                "model": self._model.model,
                "fingerprint": self._model.fingerprint,
                "routers": sorted({fact["router"] for fact in facts.values() if fact["router"]}),
                "timed": self._options.timed,
            },
            environment=dict(environment),
            cells=cells_of(self._benchmark, evaluation.items, finished, facts=facts),
            infeasible=infeasible_of(self._benchmark, finished),
        )

    def _is_known(self, row: Contender, *, skips: bool) -> bool:
        try:
            self._levels[row.strategy] = level_of(row.strategy, self._strategies)
        except InvalidField as err:
            if not skips:
                raise
            logger.warning("%s is left out: %s", row.label, err.message)
            return False
        check_knobs(row.strategy, dict(row.options))
        return True

    def _facts(self, row: Contender) -> dict[str, Any]:
        """What the tables say of a row beside its figures."""
        router = self._subjects[row.router].quality.capabilities().router
        return {
            "level": self._levels[row.strategy],
            "base": row.label.removesuffix(f"@{row.router}"),
            "router": router if self._reads[row.strategy] else None,
        }


def limits_of(
    *, limit: int | None, limits: Mapping[str, int], preset: Mapping[str, int]
) -> dict[str, int]:
    """A strategy's own count first, then the count for all, then the preset's."""
    base = dict(preset) if limit is None else {OTHERS: limit}
    return {**base, **limits}


def _strategies_of(subjects: Subjects) -> tuple[StrategyInfo, ...]:
    """Those of every router together: the model's own folder may have none."""
    known = {
        info.name: info
        for subject in subjects.values()
        for info in subject.quality.capabilities().strategies
    }
    return tuple(known.values())


def cells_folder(output: Path | None) -> Path | None:
    return None if output is None else output / CELLS
