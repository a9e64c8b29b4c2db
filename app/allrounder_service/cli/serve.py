"""`allrounder serve|worker`: a setting is a flag, an environment variable, or its default."""

from __future__ import annotations

import typer

_OWN_FLAGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def register(cli: typer.Typer) -> None:
    cli.command(context_settings=_OWN_FLAGS)(serve)
    cli.command(context_settings=_OWN_FLAGS)(worker)


def serve(ctx: typer.Context) -> None:
    """Serve over HTTP until a signal; `allrounder serve --help` lists every setting."""
    _run(ctx.args, "serve")


def worker(ctx: typer.Context) -> None:
    """Work on batch jobs until a signal; over HTTP there are only probes and metrics."""
    _run(ctx.args, "worker")


def _run(args: list[str], command: str) -> None:
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from allrounder.errors import StartupError
    from allrounder_service.main import serve as run
    from allrounder_service.settings import Settings

    try:
        settings = Settings(
            _cli_parse_args=args,
            _cli_prog_name=f"allrounder {command}",
            _cli_kebab_case=True,
            _cli_implicit_flags=True,
        )
    except (ValidationError, SettingsError) as err:
        typer.echo(f"allrounder {command}: {err}", err=True)
        raise typer.Exit(2) from err
    try:
        code = run(settings, only_worker=command == "worker")
    except StartupError as err:
        typer.echo(f"allrounder {command}: {err.message}", err=True)
        raise typer.Exit(2) from err
    raise typer.Exit(code)
