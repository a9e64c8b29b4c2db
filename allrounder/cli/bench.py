"""`allrounder bench engine|serve`: speed, beside a baseline measured by the same script."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from allrounder.cli import bench_serve

_THREADS = "CPU threads; default: the library's own."


def register(cli: typer.Typer) -> None:
    group = typer.Typer(help="Measure the engine, or a running service.", no_args_is_help=True)
    group.command()(engine)
    bench_serve.register(group)
    cli.add_typer(group, name="bench")


def engine(
    model: Annotated[
        str, typer.Option(help="random:<shape>, demo, or a transformers folder.")
    ] = "random:llava-512x32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Each setting once a round.", min=1)] = 5,
    threads: Annotated[int | None, typer.Option(help=_THREADS, min=1)] = None,
    router_width: Annotated[
        int, typer.Option(help="Decoder width at which the router's cost is taken.", min=64)
    ] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the ratios to this file (extra plots).")
    ] = None,
) -> None:
    """Time plans against the dense path and transformers' generate, all settings in turns."""
    from tqdm import tqdm

    from allrounder.bench.engine_bench import EngineBench, EngineOptions
    from allrounder.bench.rows import text_of
    from allrounder.errors import AllrounderError
    from allrounder.measure.environment import environment

    logging.basicConfig(level=logging.WARNING)
    options = EngineOptions(
        model=model,
        device=device,
        dtype=dtype,
        rounds=rounds,
        threads=threads,
        router_width=router_width,
    )
    try:
        bench = EngineBench(options)
        with tqdm(total=bench.num_runs, unit="run") as bar:
            rows = bench.run(tick=bar.update)
    except AllrounderError as err:
        typer.echo(f"allrounder bench engine: {err.message}", err=True)
        raise typer.Exit(1) from err
    typer.echo(text_of({**environment(sys.argv), **bench.facts()}, rows, as_json=as_json))
    if plot is not None:
        from allrounder.bench.rows import plot_ratios

        plot_ratios(rows, plot)
