"""Figures by which the README explains its tables, each from one of these commands:

.venv/bin/python -m research.findings autoprune
.venv/bin/python -m research.findings counts evaluation/full/cells 0.35
.venv/bin/python -m research.findings shapes CELL CELL

The cells are those that `allrounder evaluate` has left in its output folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import typer

from allrounder.cli import evaluate
from allrounder.core import ModelGeometry
from allrounder.demo.held_out import draw_exams
from allrounder.demo.wording import NUMBER_WORDS
from allrounder.evaluation.benchmarks.demo import DemoBenchmark, DemoItem
from allrounder.measure.statistics import Estimate, difference
from allrounder.pruning import STRATEGIES
from allrounder.pruning.autoprune import AutoPrune
from allrounder.pruning.strategy import Choice, Points, View, keep_best

SHAPE_CLASSES = (0, 5, 9, 1000)

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class FirstCut(AutoPrune):
    """All tokens are dropped at AutoPrune's first selection point."""

    name: ClassVar[str] = "autoprune-first"

    def schedule(self, geometry: ModelGeometry, num_visual: int, count: int) -> Points:
        return ((1, count),)

    def reschedule(self, view: View, count: int, remaining: Points) -> Points:
        return remaining


@dataclass(frozen=True, kw_only=True)
class ClassToken(AutoPrune):
    """AutoPrune's schedule, with every cut ranked by the vision encoder's class token alone."""

    name: ClassVar[str] = "autoprune-class"

    def choose(self, view: View, count: int) -> Choice:
        assert view.cls_attention_V is not None, "the embedded model has a class token"
        scores_C = view.cls_attention_V[view.arriving].float()
        return Choice(rows=view.arriving[keep_best(scores_C, count)])


@app.command()
def autoprune(limit: int = 1000, output: Path | None = None) -> None:
    """Where AutoPrune loses: beside it its first cut alone, and its cuts ranked otherwise."""
    for kind in (FirstCut, ClassToken):
        STRATEGIES[kind.name] = kind
    names = ("none", AutoPrune.name, FirstCut.name, ClassToken.name)
    words = ["--strategies", ",".join(names), "--budgets", "tokens=11.2%,tokens=28%"]
    words += ["--seed", "1", "--threads", "1", "--timed", "0", "--limit", str(limit)]
    words += ["--output", str(output)] if output else []
    cli = typer.Typer()
    evaluate.register(cli)
    cli(["evaluate", *words])


@app.command()
def counts(cells: Path, budget: float) -> None:
    """By how much counts differ from the dense ones, on questions that ask for a count."""
    found = [_read(path) for path in sorted(cells.glob("trial-*.json"))]
    # Of what a budget cannot pay for there is no trial.
    trials = [each for each in found if each["body"]["trial"]]
    dense = max(
        (each for each in trials if each["key"]["strategy"] == "none"),
        key=lambda each: each["key"]["limit"],
    )
    whole, seed = _answers(dense), dense["key"]["seed"]
    counted = [n for n, item in enumerate(_items(dense["key"])) if item.type == "count"]
    for trial in trials:
        key = trial["key"]
        if key["budget"] != budget or key["seed"] != seed or key["options"]:
            continue
        own = _answers(trial)
        pairs = [(_number(own[n]), _number(whole[n])) for n in counted if n < len(own)]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        mine, theirs = zip(*known, strict=True)
        _print_estimate(key["strategy"], difference(mine, theirs, range(len(known))), scale=1)


@app.command()
def shapes(mine: Path, theirs: Path) -> None:
    """Points by which one cell is ahead of another, by the number of shapes in the image."""
    trials = [_read(path) for path in (mine, theirs)]
    items = _items(trials[0]["key"])
    assert trials[0]["key"]["items"] == trials[1]["key"]["items"], "these are other questions"
    grades = [
        [item.grade(answer) for item, answer in zip(items, _answers(trial), strict=True)]
        for trial in trials
    ]
    exams = draw_exams(items[-1].cluster + 1, seed=trials[0]["key"]["seed"])
    sizes = [len(exams[item.cluster].scene.objects) for item in items]
    for least, above in (*pairwise(SHAPE_CLASSES), (0, SHAPE_CLASSES[-1])):
        chosen = [n for n, size in enumerate(sizes) if least <= size < above]
        own, other = ([each[n] for n in chosen] for each in grades)
        clusters = [items[n].cluster for n in chosen]
        _print_estimate(f"from {least} to {above - 1}", difference(own, other, clusters), scale=100)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _answers(trial: dict[str, Any]) -> list[str]:
    answers: list[str] = trial["body"]["trial"]["answers"]
    return answers


def _items(key: dict[str, Any]) -> list[DemoItem]:
    items = DemoBenchmark().items(limit=key["limit"], seed=key["seed"])
    return [item for item in items if isinstance(item, DemoItem)]


def _number(answer: str) -> int | None:
    word = answer.strip().lower().removesuffix(".")
    if word in NUMBER_WORDS:
        return NUMBER_WORDS.index(word)
    return int(word) if word.isdigit() else None


def _print_estimate(name: str, found: Estimate, *, scale: int) -> None:
    typer.echo(f"{name}: {scale * found.value:+.2f} ± {scale * found.stderr:.2f} (n = {found.n})")


if __name__ == "__main__":
    app()
