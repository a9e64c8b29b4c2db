"""Trials to cells (JSON) and to a Markdown table, with standard errors by picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from app.evaluation.base import Item
from app.evaluation.runner import DENSE, Trial


def cells_of(
    benchmark: str, items: Sequence[Item], trials: Sequence[Trial]
) -> list[dict[str, Any]]:
    """One cell a trial; `loyalty` and `latency_ratio` need the dense trial among them.

    `paired` gives, for every other strategy at the same budget, the difference in accuracy and its
    standard error over the same items.
    """
    grades = {
        trial.setting: [
            item.grade(result.answer) for item, result in zip(items, trial.results, strict=True)
        ]
        for trial in trials
    }
    dense = next((trial for trial in trials if trial.setting.strategy == DENSE), None)
    clusters = [item.cluster for item in items]
    cells = []
    for trial in trials:
        mine = grades[trial.setting]
        cells.append(
            {
                "benchmark": benchmark,
                "strategy": trial.setting.strategy,
                "budget": trial.setting.budget,
                "accuracy": _mean(mine),
                "n": len(mine),
                "stderr": standard_error(mine, clusters),
                **_costs(trial, dense),
                "loyalty": _loyalty(trial, dense),
                "by_type": _by_type(items, mine),
                "paired": {
                    other.strategy: _paired(mine, theirs, clusters)
                    for other, theirs in grades.items()
                    if other.budget == trial.setting.budget
                    and other.strategy != trial.setting.strategy
                },
            }
        )
    return cells


def standard_error(values: Sequence[float], clusters: Sequence[int]) -> float:
    """Of the mean, taking all items of a cluster as one draw."""
    mean = _mean(values)
    sums: dict[int, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    return math.sqrt(sum(total**2 for total in sums.values())) / len(values)


def table_of(cells: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line a cell."""
    lines = [
        "| strategy | budget | accuracy | same as dense | prefill FLOPs | KV bytes | latency |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        latency = cell["latency_ms"]
        shown = "" if latency is None else f"{latency:.0f} ms ({_ratio(cell['latency_ratio'])})"
        lines.append(
            f"| {cell['strategy']} | {cell['budget']:g} "
            f"| {100 * cell['accuracy']:.1f} ± {100 * cell['stderr']:.1f} % "
            f"| {_percent(cell['loyalty'])} | {_percent(cell['flops_ratio'])} "
            f"| {cell['kv_bytes'] / 1024:.0f} KiB | {shown} |"
        )
    return "\n".join(lines)


def _costs(trial: Trial, dense: Trial | None) -> dict[str, Any]:
    costs = [result.cost for result in trial.results]
    seconds = trial.median_seconds
    baseline = dense.median_seconds if dense else None
    return {
        "flops_ratio": _mean([cost.prefill_ratio for cost in costs]),
        "total_flops_ratio": sum(c.executed for c in costs) / sum(c.dense for c in costs),
        "kv_bytes": _mean([cost.kv_bytes for cost in costs]),
        "kv_ratio": sum(c.kv_bytes for c in costs) / sum(c.dense_kv_bytes for c in costs),
        "latency_ms": None if seconds is None else 1000 * seconds,
        "latency_ratio": seconds / baseline if seconds and baseline else None,
    }


def _loyalty(trial: Trial, dense: Trial | None) -> float | None:
    if dense is None:
        return None
    return _mean([a.answer == b.answer for a, b in zip(trial.results, dense.results, strict=True)])


def _by_type(items: Sequence[Item], grades: Sequence[float]) -> dict[str, dict[str, float]]:
    of_type: dict[str, list[float]] = defaultdict(list)
    for item, grade in zip(items, grades, strict=True):
        of_type[item.type].append(grade)
    return {
        name: {
            "accuracy": _mean(found),
            "n": len(found),
            "stderr": math.sqrt(_mean(found) * (1 - _mean(found)) / len(found)),
        }
        for name, found in sorted(of_type.items())
    }


def _paired(
    mine: Sequence[float], theirs: Sequence[float], clusters: Sequence[int]
) -> dict[str, float]:
    differences = [float(a) - float(b) for a, b in zip(mine, theirs, strict=True)]
    return {"difference": _mean(differences), "stderr": standard_error(differences, clusters)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.1f} %"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.2f}"
