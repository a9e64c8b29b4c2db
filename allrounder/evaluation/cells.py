"""Finished settings to cells: plain JSON, every mean with a standard error by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from allrounder.evaluation.benchmark import Benchmark, Item
from allrounder.evaluation.grid import DENSE
from allrounder.evaluation.run import Finished, grades_of
from allrounder.measure.statistics import (
    clustered_mean,
    difference,
    median_ratio,
    percentile,
    ratio_of_means,
)

Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Graded:
    """A served setting with its grades, in the items' order."""

    finished: Finished
    answers: tuple[str, ...]
    grades: list[float]

    @property
    def label(self) -> str:
        return self.finished.setting.contender.label

    @property
    def budget(self) -> str:
        return self.finished.setting.budget.label


def cells_of(
    benchmark: Benchmark,
    items: Sequence[Item],
    finished: Sequence[Finished],
    *,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """One cell a served setting. What compares with dense is None where dense was not run.

    `paired` holds, for every other strategy at the same budget, the difference in accuracy over
    the items that both answered. `facts` adds to the cells of a strategy what is said of it.
    """
    graded = [
        _Graded(finished=each, answers=each.trial.answers, grades=grades_of(items, each.trial))
        for each in finished
        if each.trial is not None
    ]
    dense = next((each for each in graded if _is_dense(each.finished)), None)
    clusters = [item.cluster for item in items]
    return [
        {
            **_head(benchmark, mine, facts or {}),
            **clustered_mean(mine.grades, clusters).as_json("accuracy"),
            **_costs(mine.finished),
            **_beside_dense(mine, dense, clusters),
            **_latency(mine.finished, dense.finished if dense else None),
            "by_type": _by_type(items, clusters, mine),
            "paired": {
                other.label: difference(mine.grades, other.grades, clusters).as_json("difference")
                for other in graded
                if other.budget == mine.budget and other.label != mine.label
            },
            "choice": asdict(mine.finished.choice) if mine.finished.choice else None,
            "summary": benchmark.summary(items[: len(mine.answers)], mine.answers),
        }
        for mine in graded
    ]


def infeasible_of(benchmark: Benchmark, finished: Sequence[Finished]) -> list[Cell]:
    """Settings without a cell, and why."""
    return [
        {
            "benchmark": benchmark.name,
            "strategy": each.setting.contender.label,
            "budget": each.setting.budget.wire,
            "budget_label": each.setting.budget.label,
            "reason": each.reason,
        }
        for each in finished
        if each.reason is not None
    ]


def _is_dense(finished: Finished) -> bool:
    return finished.setting.contender.strategy == DENSE


def _head(
    benchmark: Benchmark, mine: _Graded, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    setting = mine.finished.setting
    return {
        "benchmark": benchmark.name,
        "strategy": mine.label,
        "budget": setting.budget.wire,
        "budget_label": setting.budget.label,
        "options": dict(setting.contender.options),
        **facts.get(mine.label, {}),
    }


def _costs(finished: Finished) -> dict[str, Any]:
    assert finished.trial is not None, "only served settings become cells"
    return dict(finished.trial.costs)


def _beside_dense(mine: _Graded, dense: _Graded | None, clusters: Sequence[int]) -> dict[str, Any]:
    trial = mine.finished.trial
    assert trial is not None, "only served settings become cells"
    kl = clustered_mean(trial.kl_nats, clusters) if trial.kl_nats else None
    found: dict[str, Any] = {
        "kl_nats": kl.value if kl else None,
        "kl_stderr": kl.stderr if kl else None,
    }
    if dense is None:
        return {**found, "loyalty": None, "loyalty_stderr": None, "dense": None, "retained": None}
    same = [float(a == b) for a, b in zip(mine.answers, dense.answers, strict=False)]
    loyalty = clustered_mean(same, clusters)
    retained = ratio_of_means(mine.grades, dense.grades, clusters)
    return {
        **found,
        "loyalty": loyalty.value,
        "loyalty_stderr": loyalty.stderr,
        "dense": difference(mine.grades, dense.grades, clusters).as_json("difference"),
        "retained": retained.as_json("ratio") if retained else None,
    }


def _latency(finished: Finished, dense: Finished | None) -> dict[str, Any]:
    seconds = finished.seconds
    found: dict[str, Any] = {
        "latency_ms": 1000 * percentile(seconds, 50) if seconds else None,
        "latency_ratio": None,
        "latency_ratio_stderr": None,
    }
    if seconds and dense and dense.seconds:
        beside = median_ratio(seconds, dense.seconds)
        found.update(latency_ratio=beside.value, latency_ratio_stderr=beside.stderr)
    return found


def _by_type(
    items: Sequence[Item], clusters: Sequence[int], mine: _Graded
) -> dict[str, dict[str, Any]]:
    of_type: dict[str, list[int]] = defaultdict(list)
    for idx in range(len(mine.grades)):
        of_type[items[idx].type].append(idx)
    return {
        name: clustered_mean(
            [mine.grades[idx] for idx in found], [clusters[idx] for idx in found]
        ).as_json("accuracy")
        for name, found in sorted(of_type.items())
    }
