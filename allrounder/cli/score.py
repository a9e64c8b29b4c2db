"""`allrounder evaluate score`: a file of answers to a benchmark's figures, without any model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

_ALSO = {
    "seed": "seed-bench",
    "seedbenchimage": "seed-bench",
    "llavabench": "llava-bench-in-the-wild",
    "llavaw": "llava-bench-in-the-wild",
    "llavawild": "llava-bench-in-the-wild",
    "sqa": "scienceqa",
}
_SHOWN = 3


def register(group: typer.Typer) -> None:
    group.command()(score)


def score(
    benchmark: Annotated[str, typer.Argument(help="pope, mme, mmbench, scienceqa, ...")],
    answers: Annotated[Path, typer.Option(help="The answers; for some benchmarks a folder.")],
    labels: Annotated[
        Path | None, typer.Option(help="Official labels; not needed where answers carry them.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="LLaVA's question file: ids and order of the answers.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Grade a file of answers. Accuracies are shares of 1; MME, LLaVA-Bench, MM-Vet in points."""
    from allrounder.errors import AllrounderError
    from allrounder.evaluation.benchmarks import LOCAL
    from allrounder.evaluation.local import ScoreFiles

    by_spelling = {_spelling(name): name for name in LOCAL} | _ALSO
    name = by_spelling.get(_spelling(benchmark))
    if name is None:
        raise _refused(f"unknown benchmark {benchmark!r}; known: {', '.join(LOCAL)}")
    files = ScoreFiles(answers=answers, labels=labels, questions=questions)
    try:
        found = LOCAL[name].score(files)
    except AllrounderError as err:
        raise _refused(f"--{err.param} {err.message}") from err
    report = {"benchmark": name, **found}
    typer.echo(json.dumps(report) if as_json else "\n".join(_lines(report)))


def _spelling(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _refused(reason: str) -> typer.Exit:
    typer.echo(f"allrounder evaluate score: {reason}", err=True)
    return typer.Exit(2)


def _lines(report: dict[str, Any]) -> list[str]:
    problems: dict[str, dict[str, Any]] = report["problems"]
    figures = [f"{name:<40} {_shown(value)}" for name, value in _flat(report) if name != "problems"]
    return figures + [
        f"{kind}: {found['count']} ({', '.join(map(ascii, found['first'][:_SHOWN]))}, ...)"
        for kind, found in problems.items()
        if found["count"]
    ]


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, dict) and name != "problems":
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
