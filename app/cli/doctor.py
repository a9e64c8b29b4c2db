"""`allrounder doctor`: does this installation, with this model and its router, work?"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer


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
    """Examine versions, machine, model and router, and push a request through every stage.

    Every other setting is read from the environment, as by serve. Exit code 1 if anything failed.
    """
    from pydantic import ValidationError

    from app.engine.doctor import Check, Status, examine
    from app.settings import Settings

    logging.basicConfig(level=logging.ERROR)
    given = {"model": model, "device": device, "threads": threads}
    try:
        settings = Settings.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as err:
        typer.echo(f"allrounder doctor: {err}", err=True)
        raise typer.Exit(2) from err
    checks: list[Check] = []
    for check in examine(settings):
        checks.append(check)
        if not as_json:
            typer.echo(f"{check.status.value:8}{check.name:12}{check.detail}")
    is_ok = all(check.status is not Status.FAILED for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": is_ok, "checks": [asdict(check) for check in checks]}))
    raise typer.Exit(0 if is_ok else 1)
