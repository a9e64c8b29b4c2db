"""`allrounder jobs`: operators' commands for batch jobs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from allrounder_service.jobs.admin import Admin
    from allrounder_service.jobs.records import BatchRecord
    from allrounder_service.jobs.sweeper import UnreferencedFiles

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Batch = Annotated[str, typer.Argument(help="Id of a batch.")]


def register(cli: typer.Typer) -> None:
    group = typer.Typer(
        help="Look at batch jobs and look after them, on the queue that the server uses.",
        no_args_is_help=True,
    )
    group.command("list")(list_batches)
    group.command()(show)
    group.command()(retry)
    group.command()(purge)
    group.command()(dead)
    group.command()(adopt_volume)
    cli.add_typer(group, name="jobs")


def list_batches(as_json: AsJson = False) -> None:
    """Batches of all tenants, newest first."""

    async def look(admin: Admin) -> list[BatchRecord]:
        return await admin.batches()

    records = _run(look)
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records]))
        return
    for record in records:
        done = f"{record.completed} of {record.total}, {record.failed} failed"
        typer.echo(f"{_time(record.created_ms)}  {record.id}  {record.status:12}{done}")


def show(
    id: Annotated[str, typer.Argument(help="Id of a batch, or <batch>/<line>.")],
    as_json: AsJson = False,
) -> None:
    """One batch with the states of its lines, or one line."""

    async def look(admin: Admin) -> dict[str, Any]:
        if "/" in id:
            return (await admin.line(id)).model_dump(mode="json")
        record = await admin.batch(id)
        lines = await admin.lines(record)
        counts = Counter(line.state for line in lines)
        troubled = [line.id for line in lines if line.crashes]
        return record.model_dump(mode="json") | {"lines": counts, "crashed": troubled}

    found = _run(look)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        if value is not None:
            typer.echo(f"{name:20}{_shown(name, value)}")


def retry(batch: Batch, as_json: AsJson = False) -> None:
    """Run the lines that failed again, as a new batch; prints its id."""

    async def act(admin: Admin) -> BatchRecord:
        return await admin.retry(batch)

    record = _run(act)
    typer.echo(record.model_dump_json() if as_json else record.id)


def purge(batch: Batch) -> None:
    """Delete the files of a batch that has ended, and then its record."""

    async def act(admin: Admin) -> BatchRecord:
        return await admin.purge(batch)

    _run(act)
    typer.echo(f"purged {batch}")


def dead(
    clear: Annotated[bool, typer.Option("--clear", help="Forget them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Lines that were given up because they ended their worker when they ran alone."""

    async def look(admin: Admin) -> list[dict[str, Any]]:
        found = await admin.dead()
        if clear:
            await admin.clear_dead()
        return [
            {"line": each.job, "crashes": each.crashes, "died_ms": each.died_ms} for each in found
        ]

    letters = _run(look)
    if as_json:
        typer.echo(json.dumps(letters))
        return
    for letter in letters:
        typer.echo(f"{_time(letter['died_ms'])}  {letter['line']}  {letter['crashes']} crashes")


def adopt_volume(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Have the folder of files cleaned up again after the queue has lost its records.

    Says first what lies there without a record: that will be removed.
    """

    async def look(admin: Admin) -> UnreferencedFiles:
        return await admin.unreferenced()

    async def act(admin: Admin) -> None:
        await admin.adopt_volume()

    found, folder = _run(look), _files_folder()
    typer.echo(
        f"{folder} becomes the folder of this queue. What lies there without a record in the queue "
        "is then removed for good; another queue that keeps its files there loses them.\n"
        f"files without a record: {found.num_files} ({found.num_bytes} bytes)\n"
        f"batches without a record, with their responses: {found.num_batches}"
    )
    if not yes and not typer.confirm("Adopt it?"):
        raise typer.Exit(1)
    _run(act)
    typer.echo(f"adopted {folder}")


def _files_folder() -> Path:
    from allrounder_service.jobs.runtime import files_folder
    from allrounder_service.settings import Settings

    return files_folder(Settings()).absolute()


def _run(work: Callable[[Admin], Awaitable[T]]) -> T:
    from pydantic import ValidationError

    from allrounder.errors import AllrounderError
    from allrounder_service.jobs.admin import open_admin
    from allrounder_service.settings import Settings

    async def within() -> T:
        async with open_admin(Settings()) as admin:
            return await work(admin)

    try:
        return asyncio.run(within())
    except (AllrounderError, ValidationError) as err:
        typer.echo(f"allrounder jobs: {err}", err=True)
        raise typer.Exit(1) from err


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _shown(name: str, value: Any) -> str:
    if name.endswith("_ms"):
        return _time(value)
    return value if isinstance(value, str) else json.dumps(value)
