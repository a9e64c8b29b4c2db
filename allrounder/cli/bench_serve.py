"""`allrounder bench serve`: its many options, and nothing of the measuring."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allrounder.bench.rows import BenchRow
    from allrounder.bench.serve_bench import ServeBench, ServeOptions
    from allrounder.bench.targets import OpenAiApi

Url = Annotated[
    str | None, typer.Option(help="A running server; without it one is started and ended.")
]
Model = Annotated[str, typer.Option(help="Of the server that is started.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of that server.", min=1)]
ApiKey = Annotated[str | None, typer.Option(help="Key, if asked for.", envvar="ALLROUNDER_API_KEY")]
PeerUrl = Annotated[
    str | None, typer.Option(help="Any OpenAI-compatible server; gets the same load.")
]
PeerModel = Annotated[str, typer.Option(help="Name of the peer's model.")]
PeerKey = Annotated[str | None, typer.Option(help="Key of the peer.")]
Rates = Annotated[str, typer.Option(help="Requests a second, comma-separated; empty: none.")]
Duration = Annotated[float, typer.Option(help="Seconds at each rate.", min=0.1)]
Budgets = Annotated[str, typer.Option(help="Shares to mix, comma-separated.")]
Clients = Annotated[
    str, typer.Option(help="Clients that wait for their answers, comma-separated; empty: none.")
]
EachSends = Annotated[int, typer.Option(help="Requests of each such client.", min=1)]
Images = Annotated[int, typer.Option(help="Images to draw from.", min=1)]
MaxTokens = Annotated[int, typer.Option(help="Of each answer.", min=1)]
Patience = Annotated[float, typer.Option(help="Seconds until a client hangs up.", min=0.01)]
SloTtft = Annotated[float | None, typer.Option(help="Objective: the first token.", min=0)]
SloE2e = Annotated[float | None, typer.Option(help="Objective: the whole answer.", min=0)]
Seed = Annotated[int, typer.Option(help="Of arrivals and of what is asked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw to this file (extra plots).")]


def register(group: typer.Typer) -> None:
    group.command()(serve)


def serve(
    url: Url = None,
    model: Model = "demo",
    threads: Threads = None,
    api_key: ApiKey = None,
    peer_url: PeerUrl = None,
    peer_model: PeerModel = "default",
    peer_key: PeerKey = None,
    rates: Rates = "1,2,4",
    duration: Duration = 20.0,
    budgets: Budgets = "1,0.5,0.25",
    clients_closed: Clients = "1,64",
    closed_requests: EachSends = 4,
    distinct_images: Images = 8,
    max_tokens: MaxTokens = 16,
    patience_s: Patience = 60.0,
    slo_ttft_ms: SloTtft = None,
    slo_e2e_ms: SloE2e = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    plot: Plot = None,
) -> None:
    """Load a server with Poisson arrivals and with waiting clients; latency, goodput, refusals."""
    from allrounder.bench.serve_bench import ServeOptions
    from allrounder.bench.serve_rows import Slo
    from allrounder.bench.targets import OpenAiApi

    logging.basicConfig(level=logging.WARNING)
    if not _numbers(budgets, "--budgets"):
        raise typer.BadParameter("--budgets: name at least one")
    options = ServeOptions(
        rates=_numbers(rates, "--rates"),
        duration=duration,
        budgets=_numbers(budgets, "--budgets"),
        clients=tuple(map(int, _numbers(clients_closed, "--clients-closed"))),
        closed_requests=closed_requests,
        num_images=distinct_images,
        max_tokens=max_tokens,
        patience=patience_s,
        slo=Slo(first_token_seconds=_seconds(slo_ttft_ms), seconds=_seconds(slo_e2e_ms)),
        seed=seed,
    )
    peer = None
    if peer_url is not None:
        peer = OpenAiApi(url=peer_url, model=peer_model, headers=_bearer(peer_key))
    flags = ["--model", model, *(["--threads", str(threads)] if threads else [])]
    facts, rows = _measured(options, url, flags, _bearer(api_key), peer)
    _show(facts, rows, as_json=as_json, plot=plot)


def _measured(
    options: ServeOptions,
    url: str | None,
    flags: list[str],
    headers: dict[str, str],
    peer: OpenAiApi | None,
) -> tuple[dict[str, Any], list[BenchRow]]:
    from allrounder.bench.own_server import own_server
    from allrounder.bench.serve_bench import ServeBench
    from allrounder.bench.targets import OwnApi
    from allrounder.errors import AllrounderError

    try:
        with own_server(flags) if url is None else nullcontext(url) as address:
            bench = ServeBench(options, OwnApi(url=address, headers=headers), peer)
            return asyncio.run(_run(bench))
    except AllrounderError as err:
        typer.echo(f"allrounder bench serve: {err.message}", err=True)
        raise typer.Exit(1) from err


async def _run(bench: ServeBench) -> tuple[dict[str, Any], list[BenchRow]]:
    from tqdm import tqdm

    from allrounder.measure.environment import environment

    facts = {**environment(sys.argv), **await bench.facts()}
    with tqdm(total=bench.num_requests, unit="request") as bar:
        return facts, await bench.run(tick=bar.update)


def _show(facts: dict[str, Any], rows: list[BenchRow], *, as_json: bool, plot: Path | None) -> None:
    from allrounder.bench.rows import text_of

    typer.echo(text_of(facts, rows, as_json=as_json))
    if plot is not None:
        from allrounder.bench.serve_rows import plot_rates

        plot_rates(rows, plot)


def _numbers(text: str, flag: str) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in text.split(",") if each)
    except ValueError as err:
        raise typer.BadParameter(f"{flag}: {err}") from err
    if any(number <= 0 for number in found):
        raise typer.BadParameter(f"{flag}: numbers must be greater than 0")
    return found


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
