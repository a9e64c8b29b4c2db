"""`allrounder train router`: long work with a progress bar, resumable."""

from __future__ import annotations

import logging

import typer

_OWN_FLAGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def register(cli: typer.Typer) -> None:
    group = typer.Typer(help="Train a router for any model.", no_args_is_help=True)
    group.command(context_settings=_OWN_FLAGS)(router)
    cli.add_typer(group, name="train")


def router(ctx: typer.Context) -> None:
    """Train a meta-router without labels; `allrounder train router --help` lists every option."""
    from pydantic import ValidationError
    from pydantic_settings import CliApp

    from allrounder.training.options import RouterTrainingOptions
    from allrounder.training.train_router import train_router

    logging.basicConfig(level=logging.INFO)
    try:
        options = CliApp.run(RouterTrainingOptions, cli_args=ctx.args)
    except ValidationError as err:
        typer.echo(f"allrounder train router: {err}", err=True)
        raise typer.Exit(2) from err
    manifest = train_router(options)
    typer.echo(manifest.model_dump_json())
