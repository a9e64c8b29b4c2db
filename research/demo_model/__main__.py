"""`python -m research.demo_model`: trains the embedded model; long work, resumable."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from research.demo_model.training import (
    DemoTrainingOptions,
    Part,
    ablated,
    continued,
    refined,
    train,
)

Folder = Annotated[Path | None, typer.Option(help="Default: that of the shipped weights.")]
Work = Annotated[Path | None, typer.Option(help="Caches and checkpoints; the same one resumes.")]
Count = Annotated[int | None, typer.Option(min=1)]


def main(
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


if __name__ == "__main__":
    typer.run(main)
