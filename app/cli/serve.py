"""`allrounder serve`: every setting is a flag, an environment variable, or its default."""

from __future__ import annotations

import typer

_OWN_FLAGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def register(cli: typer.Typer) -> None:
    cli.command(context_settings=_OWN_FLAGS)(serve)


def serve(ctx: typer.Context) -> None:
    """Serve over HTTP until a signal; `allrounder serve --help` lists every setting."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from app.main import serve as run
    from app.settings import Settings

    try:
        settings = Settings(
            _cli_parse_args=ctx.args,
            _cli_prog_name="allrounder serve",
            _cli_kebab_case=True,
            _cli_implicit_flags=True,
        )
    except (ValidationError, SettingsError) as err:
        typer.echo(f"allrounder serve: {err}", err=True)
        raise typer.Exit(2) from err
    raise typer.Exit(run(settings))
