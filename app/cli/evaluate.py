"""`allrounder evaluate`: accuracy, loyalty and cost per strategy and budget, in one run."""

from __future__ import annotations

import json
import logging
from typing import Annotated

import typer

from app.cli import redundancy, score


def register(cli: typer.Typer) -> None:
    group = typer.Typer()
    group.callback(invoke_without_command=True)(evaluate)
    score.register(group)
    redundancy.register(group)
    cli.add_typer(group, name="evaluate")


def evaluate(
    ctx: typer.Context,
    model: Annotated[str, typer.Option(help="demo, or a transformers folder.")] = "demo",
    benchmark: Annotated[str, typer.Option(help="Which questions to ask.")] = "demo",
    strategies: Annotated[str, typer.Option(help="Comma-separated names.")] = "none,par",
    budgets: Annotated[str, typer.Option(help="Comma-separated shares.")] = "1,0.5,0.25",
    limit: Annotated[int, typer.Option(help="Questions at most.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the held-out questions.")] = 0,
    timed: Annotated[int, typer.Option(help="Rounds of single requests to time.", min=0)] = 50,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print cells as JSON.")] = False,
) -> None:
    """Run a benchmark over a grid of strategies and budgets."""
    if ctx.invoked_subcommand is not None:
        return
    from tqdm import tqdm

    from app.engine.loading import load_runner
    from app.evaluation.benchmarks import BENCHMARKS
    from app.evaluation.report import cells_of, table_of
    from app.evaluation.runner import evaluate as run
    from app.evaluation.runner import settings_of
    from app.settings import Settings

    if benchmark not in BENCHMARKS:
        raise typer.BadParameter(f"unknown benchmark {benchmark!r}; known: {', '.join(BENCHMARKS)}")
    logging.basicConfig(level=logging.WARNING)
    items = BENCHMARKS[benchmark](None).items(limit=limit, seed=seed)
    grid = settings_of(strategies.split(","), [float(budget) for budget in budgets.split(",")])
    # Every latency shall hold its own encoding: nothing is kept between requests.
    runner = load_runner(Settings(model=model, threads=threads, encoder_cache_bytes=0))
    with tqdm(total=len(items) * len(grid), unit="question") as bar:
        trials = run(runner, items, grid, timed_rounds=timed, tick=bar.update)
    cells = cells_of(benchmark, items, trials)
    typer.echo(json.dumps({"cells": cells}) if as_json else table_of(cells))
