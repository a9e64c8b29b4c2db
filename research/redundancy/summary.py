"""What was measured as JSON and Markdown, with standard errors by image, beside the goals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from allrounder.measure.statistics import clustered_mean
from research.redundancy.experiment import PlanOutcome, Redundancy
from research.redundancy.plans import LEAST_INFLUENCE, RANDOM, CurvePoint


@dataclass(frozen=True, kw_only=True)
class CostGoal:
    """What a point of a curve should cost beside the dense model, in points of accuracy."""

    claim: str
    point: CurvePoint
    below: float = math.inf
    above: float = -math.inf

    def is_met(self, points: float) -> bool:
        return self.above < points < self.below


def _skipping(count: int, **bounds: float) -> CostGoal:
    point = CurvePoint(curve="layers", rule=LEAST_INFLUENCE, amount=count)
    return CostGoal(claim=f"skipping the {count} least influential layers", point=point, **bounds)


def _keeping(share: float, **bounds: float) -> CostGoal:
    point = CurvePoint(curve="tokens", rule=RANDOM, amount=share)
    return CostGoal(
        claim=f"keeping a random {100 * share:g} % of the tokens", point=point, **bounds
    )


DEMO_GOALS = (
    _skipping(4, below=3),
    _skipping(8, above=3),
    _keeping(0.5, below=8),
    _keeping(0.12, above=15),
)
"""The embedded model shall be redundant as large models are: a little is free, a lot is not."""


def summary_of(found: Redundancy, goals: Sequence[CostGoal] = ()) -> dict[str, Any]:
    """All curves; similarities, accuracies and agreements from 0 to 1, costs in points.

    Accuracies and costs are None where the answers are not known, and so are no verdicts given.
    """
    curves: dict[str, list[dict[str, Any]]] = {"layers": [], "tokens": []}
    for point, outcomes in [*_dense_points(found), *found.outcomes.items()]:
        curves[point.curve].append(_cell(point, outcomes, found))
    for cells in curves.values():
        cells.sort(key=lambda cell: str(cell["rule"]))
    target = found.choosing.target
    return {
        "n": len(found.dense),
        "influence": list(found.choosing.influence),
        "skip_order": found.choosing.by_influence,
        "best_look": {"layer": target.layer_idx, "rows": target.rows},
        "similarity": _similarities(found),
        **curves,
        "verdicts": [verdict for goal in goals for verdict in _verdict(goal, found)],
    }


def text_of(summary: dict[str, Any]) -> str:
    """Markdown tables, then one line a verdict."""
    look = summary["best_look"]
    parts = [
        f"{summary['n']} questions; ± is one standard error, questions of an image as one draw.",
        _similarity_table(summary["similarity"]),
        _curve_table(summary["layers"], "layers skipped", "{:g}"),
        _curve_table(summary["tokens"], "tokens kept", "{:.0%}"),
        f"Best layer's attention: layer {look['layer']}, {look['rows']} row(s) of the prompt.",
        "\n".join(map(_verdict_line, summary["verdicts"])),
    ]
    return "\n\n".join(part for part in parts if part)


def _dense_points(found: Redundancy) -> list[tuple[CurvePoint, list[PlanOutcome]]]:
    rules = dict.fromkeys((point.curve, point.rule) for point in found.outcomes)
    return [
        (CurvePoint(curve=curve, rule=rule, amount=float(curve == "tokens")), found.dense)
        for curve, rule in rules
    ]


def _cell(point: CurvePoint, outcomes: Sequence[PlanOutcome], found: Redundancy) -> dict[str, Any]:
    grades = [outcome.grade for outcome in outcomes if outcome.grade is not None]
    return {
        "rule": point.rule,
        "amount": point.amount,
        "n": len(outcomes),
        **_figure("accuracy", grades, found),
        **_figure("cost_points", _costs(outcomes, found), found),
        **_figure("agreement", [outcome.agreement for outcome in outcomes], found),
        **_figure("kl_nats", [outcome.kl_nats for outcome in outcomes], found),
    }


def _figure(name: str, values: Sequence[float], found: Redundancy) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_stderr": None}
    estimate = clustered_mean(values, found.clusters)
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}


def _costs(outcomes: Sequence[PlanOutcome], found: Redundancy) -> list[float]:
    """Paired by question, so that the dense model's own errors cancel."""
    return [
        100 * (dense.grade - outcome.grade)
        for dense, outcome in zip(found.dense, outcomes, strict=True)
        if dense.grade is not None and outcome.grade is not None
    ]


def _similarities(found: Redundancy) -> list[dict[str, Any]]:
    return [
        {
            "tokens": name,
            "layer": layer_idx,
            **_figure("all_rows", [float(every[layer_idx]) for every, _ in pairs], found),
            **_figure("last_row", [float(last[layer_idx]) for _, last in pairs], found),
        }
        for name, pairs in found.similarity.items()
        for layer_idx in range(len(found.choosing.influence))
    ]


def _verdict(goal: CostGoal, found: Redundancy) -> list[dict[str, Any]]:
    """One, or none where the point was not measured or not graded."""
    outcomes = found.outcomes.get(goal.point)
    costs = _costs(outcomes, found) if outcomes else []
    if not costs:
        return []
    figure = _figure("cost_points", costs, found)
    points = figure["cost_points"]
    assert points is not None, "there are costs"
    bound = f"under {goal.below:g}" if goal.below < math.inf else f"over {goal.above:g}"
    return [{"claim": goal.claim, **figure, "goal": bound, "met": goal.is_met(points)}]


def _verdict_line(verdict: dict[str, Any]) -> str:
    met = "met" if verdict["met"] else "MISSED"
    cost, error = verdict["cost_points"], verdict["cost_points_stderr"]
    return (
        f"{met}: {verdict['claim']} costs {cost:.1f} ± {error:.1f} points, goal {verdict['goal']}"
    )


def _similarity_table(similarity: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(cell["tokens"] for cell in similarity))
    of_layer: dict[int, list[str]] = {}
    for cell in similarity:
        row = of_layer.setdefault(cell["layer"], [])
        row.append(f"{cell['all_rows']:.3f} ± {cell['all_rows_stderr']:.3f}")
        if cell["tokens"] == names[0]:
            row.append(f"{cell['last_row']:.3f} ± {cell['last_row_stderr']:.3f}")
    header = ["layer", names[0], f"{names[0]}, last row", *names[1:]]
    return _table(header, [[str(layer_idx), *row] for layer_idx, row in of_layer.items()])


def _curve_table(cells: Sequence[dict[str, Any]], amount: str, form: str) -> str:
    header = ["rule", amount, "accuracy", "cost, points", "same as dense", "KL, nats"]
    return _table(
        header,
        [
            [
                cell["rule"],
                form.format(cell["amount"]),
                _percent(cell, "accuracy"),
                _plus_minus(cell, "cost_points", "{:.1f} ± {:.1f}"),
                _percent(cell, "agreement"),
                _plus_minus(cell, "kl_nats", "{:.3f} ± {:.3f}"),
            ]
            for cell in cells
        ],
    )


def _percent(cell: dict[str, Any], name: str) -> str:
    return _plus_minus(cell, name, "{:.1f} ± {:.1f} %", scale=100)


def _plus_minus(cell: dict[str, Any], name: str, form: str, *, scale: float = 1) -> str:
    if cell[name] is None:
        return ""
    return form.format(scale * cell[name], scale * cell[f"{name}_stderr"])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
