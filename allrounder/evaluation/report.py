"""`report.md`, `report.json` and plots from cells. Knows nothing of how they were measured."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allrounder.evaluation import tables
from allrounder.evaluation.cell_store import write_whole
from allrounder.measure.environment import is_installed

if TYPE_CHECKING:
    from allrounder.measure.plots import Point

logger = logging.getLogger(__name__)

Cell = dict[str, Any]

_PLOTS = (
    ("flops_ratio", "accuracy-flops.svg", "prefill FLOPs, choosing included, % of dense"),
    ("latency_ratio", "accuracy-latency.svg", "wall clock of a single request, % of dense"),
)
_HOW = """\
Accuracy is the mean grade; every ± is one standard error with all questions about one picture taken
as one draw. Differences are in points, paired over the questions that both rows answered. *Prefill
FLOPs* are the true ones, choosing included, as a share of dense; *as PAR counts* is that paper's
accounting (465 rows beside the visual ones, two MLP matrices, a router that costs nothing). *Same
as dense* is the share of answers equal to the unpruned model's, *KL* is KL(dense || pruned) in nats
per answer token, teacher-forced on the dense answer through the served path. Latency is the median
of single requests, encoder included, all rows taking turns; its ratio is the median round by round.
`strategy:best` has its knob chosen for each budget on other pictures than those of the test."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured, and what it was measured on.

    Attributes:
        run: benchmark, seed, model, fingerprint, routers.
        environment: machine, versions, commit, the command.
    """

    run: dict[str, Any]
    environment: dict[str, Any]
    cells: Sequence[Cell]
    infeasible: Sequence[Cell] = field(default=())

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "run": self.run,
            "cells": list(self.cells),
            "infeasible": list(self.infeasible),
        }

    @property
    def dense(self) -> Cell | None:
        return next((cell for cell in self.cells if cell["level"] == "nothing"), None)

    @property
    def budgets(self) -> list[str]:
        """Of all cells but dense, in their order."""
        pruned = (cell for cell in self.cells if cell is not self.dense)
        return list(dict.fromkeys(cell["budget_label"] for cell in pruned))

    def at(self, budget: str) -> list[Cell]:
        """Dense, then the cells at this budget."""
        dense = self.dense
        found = [cell for cell in self.cells if cell["budget_label"] == budget]
        return [dense, *(cell for cell in found if cell is not dense)] if dense else found


def write_report(report: Report, folder: Path) -> None:
    """Into `folder`, which is made if need be; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plot(report, folder)
    text = json.dumps(report.as_json(), indent=1, allow_nan=False)
    write_whole(folder / "report.json", text + "\n")
    write_whole(folder / "report.md", report_text(report, plots) + "\n")


def report_text(report: Report, plots: Sequence[str] = ()) -> str:
    """Markdown: every table with the line that says where it comes from."""
    source = _source(report) if report.cells else ""
    parts = [f"# Quality at a price: {report.run['model']} on {report.run['benchmark']}", _HOW]
    parts += [f"![{name}]({name})" for name in plots]
    for title, text in _sections(report):
        parts += [f"## {title}", text, source]
    return "\n\n".join(parts)


def _sections(report: Report) -> Iterator[tuple[str, str]]:
    pruned = [cell for cell in report.cells if cell is not report.dense]
    for budget in report.budgets:
        yield f"Strategies at budget {budget}", tables.main_table(report.at(budget))
    if any(cell["level"] in tables.LEVELS for cell in pruned):
        yield "Tokens only, layers only, both", tables.level_table(pruned)
    routed = [cell for cell in pruned if cell.get("base") not in (None, cell["strategy"])]
    if routed:
        yield "Routers", tables.router_table(routed)
    counted = [cell for cell in pruned if isinstance(cell["budget"], dict)] or pruned
    if counted and report.dense:
        rival = next((cell["strategy"] for cell in pruned if cell["strategy"] == "pdrop"), None)
        yield "Accuracy retained", tables.headline_table(counted, rival=rival)
    subject = _subject(pruned)
    if subject is not None:
        yield f"{subject} beside each", tables.paired_table(pruned, subject=subject)
    for budget in report.budgets:
        yield f"By type of question at budget {budget}", tables.type_table(report.at(budget))
    searched = [cell for cell in pruned if cell["choice"]]
    if searched:
        yield "What the searches took", tables.choice_table(searched)
    if report.infeasible:
        yield "Not possible", tables.infeasible_table(report.infeasible)


def _subject(pruned: Sequence[Cell]) -> str | None:
    """The strategy that is set beside each other one: the first that reads a router."""
    names = [cell["strategy"] for cell in pruned]
    routed = [cell["strategy"] for cell in pruned if cell.get("router")]
    return next(iter(routed or names), None) if len(set(names)) > 1 else None


def _source(report: Report) -> str:
    run, environment = report.run, report.environment
    routers = ", ".join(f"`{name}`" for name in run["routers"]) or "none"
    machine = ", ".join(
        f"{environment.get(name)}{unit}"
        for name, unit in (("cpu", ""), ("cores", " cores"), ("threads", " threads used"))
    )
    return (
        f"*`{environment.get('command')}`; {run['benchmark']}, seed {run['seed']}, "
        f"n = {_sizes(report.cells)}; model {run['model']} `{run['fingerprint']}`; "
        f"router {routers}; "
        f"{environment.get('gpu') or machine}; commit {environment.get('commit')}*"
    )


def _sizes(cells: Sequence[Cell]) -> str:
    """`1,000 (par 4,000)`: what most cells have, then the others by name."""
    usual = Counter(cell["n"] for cell in cells).most_common(1)[0][0]
    others = {cell["strategy"]: f"{cell['n']:,}" for cell in cells if cell["n"] != usual}
    named = ", ".join(f"{name} {count}" for name, count in others.items())
    return f"{usual:,} ({named})" if named else f"{usual:,}"


def _plot(report: Report, folder: Path) -> list[str]:
    """Accuracy over each kind of cost that was measured; the names of the files."""
    if not is_installed("matplotlib"):
        logger.warning("no plots: they need the extra `plots`")
        return []
    from allrounder.measure.plots import Panel, draw_curves

    dense, names = report.dense, []
    for column, name, title in _PLOTS:
        curves = _curves(report.cells, column)
        if not curves:
            continue
        panel = Panel(
            xlabel=title,
            ylabel="accuracy, %",
            curves=curves,
            baseline=("dense", 100 * dense["accuracy"]) if dense else None,
        )
        write_whole(folder / name, draw_curves([panel], size=(8, 4.5), suffix=".svg"))
        names.append(name)
    return names


def _curves(cells: Sequence[Cell], column: str) -> dict[str, list[Point]]:
    """Points (share of dense in %, accuracy in %, its error) by strategy."""
    curves: dict[str, list[Point]] = defaultdict(list)
    for cell in cells:
        if cell[column] is not None and cell["level"] != "nothing":
            point = (100 * cell[column], 100 * cell["accuracy"], 100 * cell["stderr"])
            curves[cell["strategy"]].append(point)
    return curves
