"""`allrounder keys`: API keys in a file that a running server reads again by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from allrounder_service.api.key_file import KeyRecord

KeysFile = Annotated[
    Path,
    typer.Option("--file", help="The file of API keys.", envvar="ALLROUNDER_API_KEYS_FILE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Option(help="Whose files, batches and cached images it sees.")]
Id = Annotated[str | None, typer.Option(help="4 to 32 of a-z and 0-9; default: drawn.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="chat, batch, metrics, docs; may be repeated [chat, batch]."),
]
Days = Annotated[float | None, typer.Option(help="Days until it expires.", min=0)]
Requests = Annotated[int | None, typer.Option(help="Instead of the server's; 0: none.", min=0)]
Tokens = Annotated[int | None, typer.Option(help="Instead of the server's; 0: none.", min=0)]
Concurrent = Annotated[int | None, typer.Option(help="Instead of the server's; 0: none.", min=0)]


def register(cli: typer.Typer) -> None:
    group = typer.Typer(
        help="Create, list and revoke API keys; the file holds their digests only.",
        no_args_is_help=True,
    )
    group.command()(create)
    group.command("list")(list_keys)
    group.command()(revoke)
    cli.add_typer(group, name="keys")


def create(
    file: KeysFile,
    tenant: Tenant,
    id: Id = None,
    scope: Scopes = None,
    expires_days: Days = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    concurrent_requests: Concurrent = None,
    as_json: AsJson = False,
) -> None:
    """Add a key and print it, this once. The file is made if it is not there."""
    from allrounder_service.api.auth import issue_key
    from allrounder_service.api.key_file import edit_keys

    fields: dict[str, object] = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
    }
    if scope:
        fields["scopes"] = tuple(scope)
    if expires_days is not None:
        expires = datetime.now(UTC) + timedelta(days=expires_days)
        fields["expires"] = expires.replace(microsecond=0)
    with _reported_errors(), edit_keys(file) as keys:
        made = issue_key(tenant=tenant, id=id, **fields)
        if made.record.id in keys:
            raise typer.BadParameter(f"there is a key {made.record.id} already")
        keys[made.record.id] = made.record
    typer.echo(json.dumps({"key": made.text, **_shown(made.record)}) if as_json else made.text)


def list_keys(file: KeysFile, as_json: AsJson = False) -> None:
    """All keys of the file, with their tenants, scopes, limits and states."""
    from allrounder_service.api.key_file import read_keys

    with _reported_errors():
        records = read_keys(file).keys
    if as_json:
        typer.echo(json.dumps([_shown(record) for record in records]))
        return
    for record in records:
        limits = ", ".join(f"{name} {value}" for name, value in record.own_limits.items())
        scopes = ",".join(record.scopes)
        typer.echo(
            f"{record.id:16}{_state(record):10}{record.tenant:20}{scopes:28}{limits}".rstrip()
        )


def revoke(
    id: Annotated[str, typer.Argument(help="Id of the key: what stands after ar-.")],
    file: KeysFile,
) -> None:
    """Disable a key; running servers refuse it about a second later."""
    from allrounder_service.api.key_file import edit_keys

    with _reported_errors(), edit_keys(file) as keys:
        if id not in keys:
            raise typer.BadParameter(f"there is no key {id}")
        keys[id] = keys[id].model_copy(update={"disabled": True})
    typer.echo(f"revoked {id}")


@contextmanager
def _reported_errors() -> Iterator[None]:
    """Prints errors as one line on standard error."""
    from pydantic import ValidationError

    from allrounder.errors import AllrounderError

    try:
        yield
    except ValidationError as err:
        wrong = ", ".join(str(each["loc"][0]) for each in err.errors(include_input=False))
        raise typer.BadParameter(f"not valid: {wrong}") from None
    except (AllrounderError, OSError) as err:
        typer.echo(f"allrounder keys: {err}", err=True)
        raise typer.Exit(1) from None


def _shown(record: KeyRecord) -> dict[str, object]:
    found = record.model_dump(mode="json", exclude_none=True, exclude={"sha256", "disabled"})
    return {**found, "state": _state(record)}


def _state(record: KeyRecord) -> str:
    if record.disabled:
        return "revoked"
    return "active" if record.is_valid(datetime.now(UTC)) else "expired"
