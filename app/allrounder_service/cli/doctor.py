"""`allrounder doctor`: does this installation, with this model and its router, work?"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allrounder.diagnostics import Check
    from allrounder_service.jobs.server import ServerDescription
    from allrounder_service.settings import Settings


def register(cli: typer.Typer) -> None:
    cli.command()(doctor)


def doctor(
    model: Annotated[
        str | None, typer.Option(help="demo, a transformers folder, or random:<shape>.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine versions, machine, model, router and queue; push a request through every stage.

    Every other setting is read from the environment, as by serve. Exit code 1 if anything failed.
    """
    from pydantic import ValidationError

    from allrounder.diagnostics import Status, examine
    from allrounder_service.settings import Settings

    logging.basicConfig(level=logging.ERROR)
    given = {"model": model, "device": device, "threads": threads}
    try:
        settings = Settings.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as err:
        typer.echo(f"allrounder doctor: {err}", err=True)
        raise typer.Exit(2) from err
    checks: list[Check] = []
    for check in chain(examine(settings), examine_queue(settings)):
        checks.append(check)
        if not as_json:
            typer.echo(f"{check.status.value:8}{check.name:12}{check.detail}")
    is_ok = all(check.status is not Status.FAILED for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": is_ok, "checks": [asdict(check) for check in checks]}))
    raise typer.Exit(0 if is_ok else 1)


def examine_queue(settings: Settings) -> Iterator[Check]:
    """The row of the server of batch jobs; without one chat still works, so that is a warning."""
    from allrounder.diagnostics import Check, Status
    from allrounder.errors import StartupError
    from allrounder_service.jobs import server as queue_server
    from allrounder_service.jobs.server import ServerState

    try:
        found = asyncio.run(queue_server.examine_queue(settings))
    except StartupError as err:
        yield Check(name="queue", status=Status.FAILED, detail=err.message)
        return
    facts: dict[str, Any] = asdict(found)
    detail = f"{found.kind.value}, {found.where}" if found.where else "none"
    if found.facts is not None:
        detail += _shown_server(found)
        detail += "".join(f"; {warning}" for warning in found.facts.warnings)
        facts["warnings"] = found.facts.warnings
        status = Status.WARNING if found.facts.warnings else Status.OK
    else:
        detail += f": {found.reason}"
        status = Status.WARNING if found.state is ServerState.NOT_CONFIGURED else Status.FAILED
    yield Check(name="queue", status=status, detail=detail, facts=facts)


def _shown_server(found: ServerDescription) -> str:
    assert found.facts is not None
    facts = found.facts
    by = f" by {found.binary}" if found.binary else ""
    running = ", in use by a service that runs" if found.state == "in_use" else ""
    used, limit = (
        "unknown" if size is None else f"{size / 2**20:.0f} MiB"
        for size in (facts.used_memory, facts.maxmemory)
    )
    fsync = "unknown" if facts.fsync_ms is None else f"{facts.fsync_ms:.1f} ms"
    return (
        f"{by}{running}: {facts.program} {facts.version}, appendfsync "
        f"{facts.appendfsync or 'unknown'}, fsync {fsync}, memory {used} of {limit}"
    )
