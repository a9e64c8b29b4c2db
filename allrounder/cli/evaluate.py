"""`allrounder evaluate`: accuracy, loyalty, KL and cost of strategies at budgets, resumable."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allrounder.cli import score

if TYPE_CHECKING:
    from allrounder.evaluation.benchmark import Benchmark
    from allrounder.evaluation.command import GridSpec
    from allrounder.evaluation.defaults import Preset
    from allrounder.evaluation.report import Report
    from allrounder.evaluation.run import RunOptions

Model = Annotated[str, typer.Option(help="demo, or a transformers folder.")]
BenchmarkName = Annotated[str, typer.Option("--benchmark", help="Which questions to ask.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the benchmark's official files.")]
Strategies = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: par, fastv:layer=3, fastv:best+shortgpt. Default: none,par."
    ),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated: 0.5, tokens=24/layers=12, tokens=12%, quality=0.98. "
        "Default: 1,0.5,0.25."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Questions at most. Default: 1000.", min=1)]
Limits = Annotated[str, typer.Option(help="Of single strategies: par=4000,*=1000.")]
Routers = Annotated[
    str, typer.Option(help="name=folder,...: strategies that read a router run with each.")
]
Seed = Annotated[int, typer.Option(help="Of the held-out questions.")]
Selection = Annotated[
    int | None, typer.Option(help="Questions on which :best is chosen. Default: 400.", min=1)
]
Timed = Annotated[
    int | None, typer.Option(help="Rounds of single requests to time. Default: 50.", min=0)
]
WithKl = Annotated[bool, typer.Option("--kl/--no-kl", help="Measure KL to the dense answers.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1)]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for finished cells, report and plots; the same one resumes."),
]
Short = Annotated[bool, typer.Option("--short", help="The grid of `make evaluate`.")]
Full = Annotated[bool, typer.Option("--full", help="The grid of the full report.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print cells as JSON.")]


def register(cli: typer.Typer) -> None:
    """A subcommand, `allrounder evaluate NAME`, registers with the group here."""
    group = typer.Typer(help="Run a benchmark over a grid of strategies and budgets.")
    group.callback(invoke_without_command=True)(evaluate)
    score.register(group)
    cli.add_typer(group, name="evaluate")


def evaluate(
    ctx: typer.Context,
    model: Model = "demo",
    benchmark: BenchmarkName = "demo",
    data: Data = None,
    strategies: Strategies = None,
    budgets: Budgets = None,
    limit: Limit = None,
    limits: Limits = "",
    routers: Routers = "",
    seed: Seed = 0,
    selection: Selection = None,
    timed: Timed = None,
    with_kl: WithKl = True,
    threads: Threads = None,
    output: Output = None,
    short: Short = False,
    full: Full = False,
    as_json: AsJson = False,
) -> None:
    """Run a benchmark over a grid of strategies and budgets; finished cells are not run again."""
    if ctx.invoked_subcommand is not None:
        return
    from allrounder.errors import AllrounderError, InvalidField
    from allrounder.evaluation.command import GridSpec, limits_of
    from allrounder.evaluation.defaults import BASIC, FULL, SHORT
    from allrounder.evaluation.grid import parse_limits

    logging.basicConfig(level=logging.WARNING)
    preset = FULL if full else SHORT if short else BASIC
    try:
        spec = GridSpec(
            strategies=strategies.split(",") if strategies else preset.strategies,
            budgets=budgets.split(",") if budgets else preset.budgets,
            limits=limits_of(limit=limit, limits=parse_limits(limits), preset=preset.limits),
            routers=_folders(routers),
            skips_unknown=strategies is None,
            options=_options(preset, seed=seed, selection=selection, timed=timed, with_kl=with_kl),
        )
        report = _run(spec, model, _open(benchmark, data), threads, output or preset.output)
    except InvalidField as err:
        raise typer.BadParameter(err.message) from err
    except AllrounderError as err:
        typer.echo(f"allrounder evaluate: {err.message}", err=True)
        raise typer.Exit(1) from err
    _show(report, as_json=as_json)


def _options(
    preset: Preset, *, seed: int, selection: int | None, timed: int | None, with_kl: bool
) -> RunOptions:
    from allrounder.evaluation.run import RunOptions

    return RunOptions(
        seed=seed,
        selection=preset.selection if selection is None else selection,
        timed=preset.timed if timed is None else timed,
        with_kl=with_kl,
    )


def _open(name: str, data: Path | None) -> Benchmark:
    from allrounder.evaluation.benchmarks import BENCHMARKS

    if name not in BENCHMARKS:
        raise typer.BadParameter(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](data)


def _run(
    spec: GridSpec, model: str, benchmark: Benchmark, threads: int | None, output: Path | None
) -> Report:
    from tqdm import tqdm

    from allrounder.evaluation.cell_store import CellStore
    from allrounder.evaluation.command import GridJob, cells_folder
    from allrounder.evaluation.report import write_report
    from allrounder.evaluation.subjects import load_subjects
    from allrounder.measure.environment import environment
    from allrounder.settings import EngineSettings

    subjects = load_subjects(EngineSettings(model=model, threads=threads), spec.routers)
    job = GridJob(subjects, benchmark, spec)
    with tqdm(total=job.num_ticks, unit="question") as bar:
        report = job.run(
            CellStore(cells_folder(output)), environment=environment(sys.argv), tick=bar.update
        )
    if output is not None:
        write_report(report, output)
    return report


def _show(report: Report, *, as_json: bool) -> None:
    from allrounder.evaluation.tables import infeasible_table, plain_table

    if as_json:
        found = {"cells": report.cells, "infeasible": report.infeasible}
        typer.echo(json.dumps(found, allow_nan=False))
        return
    typer.echo(plain_table(report.cells))
    if report.infeasible:
        typer.echo(f"\nNot possible:\n\n{infeasible_table(report.infeasible)}")


def _folders(text: str) -> dict[str, Path]:
    from allrounder.errors import InvalidField

    folders = {}
    for pair in filter(None, text.split(",")):
        name, equals, folder = pair.partition("=")
        if not name or not equals or not folder:
            raise InvalidField(f"{pair!r} is no name=folder", param="routers")
        folders[name] = Path(folder)
    return folders
