"""`allrounder train demo|router`: long work with a progress bar, resumable."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

_OWN_FLAGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
Folder = Annotated[Path | None, typer.Option(help="Default: inside the package.")]
Work = Annotated[Path | None, typer.Option(help="Caches and checkpoints; the same one resumes.")]
Count = Annotated[int | None, typer.Option(min=1)]


def register(cli: typer.Typer) -> None:
    group = typer.Typer(
        help="Train the embedded model, or a router for any model.", no_args_is_help=True
    )
    group.command()(demo)
    group.command(context_settings=_OWN_FLAGS)(router)
    cli.add_typer(group, name="train")


def demo(
    output: Folder = None,
    work: Work = None,
    scenes: Count = None,
    vision_steps: Count = None,
    decoder_steps: Count = None,
    start: Annotated[
        Path | None, typer.Option(help="A saved model to go on from instead of from nothing.")
    ] = None,
    refine: Annotated[
        bool, typer.Option(help="With --start: the recipe's last run instead of its second.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out a part: token-drop, layer-drop, grounding. Repeatable."),
    ] = None,
    threads: Count = None,
    seed: Annotated[int, typer.Option(help="Of scenes, weights and order.")] = 0,
) -> None:
    """Train the embedded model on procedural scenes; run it again to resume."""
    from app.demo.train import DemoTrainingOptions, Part, ablated, continued, refined, train

    logging.basicConfig(level=logging.INFO)
    if refine and start is None:
        raise typer.BadParameter("--refine goes on from a model: give --start as well")
    unknown = set(without or ()) - set(Part)
    if unknown:
        raise typer.BadParameter(f"no part of the recipe: {', '.join(sorted(unknown))}")
    if start is None:
        defaults = DemoTrainingOptions()
    else:
        defaults = refined(start) if refine else continued(start)
    train(
        replace(
            ablated(defaults, map(Part, without or ())),
            output=output or defaults.output,
            work=work or defaults.work,
            num_scenes=scenes or defaults.num_scenes,
            num_threads=threads or defaults.num_threads,
            seed=seed,
            vision=replace(defaults.vision, num_steps=vision_steps or defaults.vision.num_steps),
            decoder=replace(
                defaults.decoder, num_steps=decoder_steps or defaults.decoder.num_steps
            ),
        )
    )


def router(ctx: typer.Context) -> None:
    """Train a meta-router without labels; `allrounder train router --help` lists every option."""
    from pydantic import ValidationError
    from pydantic_settings import CliApp

    from app.training.options import RouterTrainingOptions
    from app.training.train import train_router

    logging.basicConfig(level=logging.INFO)
    try:
        options = CliApp.run(RouterTrainingOptions, cli_args=ctx.args)
    except ValidationError as err:
        typer.echo(f"allrounder train router: {err}", err=True)
        raise typer.Exit(2) from err
    manifest = train_router(options)
    typer.echo(manifest.model_dump_json())
