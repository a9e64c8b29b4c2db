"""`python -m research.redundancy`: accuracy of a frozen model less some layers or visual tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from allrounder.errors import AllrounderError
from allrounder.evaluation.benchmarks import BENCHMARKS
from allrounder.measure.environment import is_installed
from allrounder.measure.frozen import FrozenModel
from allrounder.models.loading import load_adapter
from allrounder.training.samples import load_images
from research.redundancy.experiment import (
    Questions,
    choose,
    measure,
    questions_of,
    split_questions,
)
from research.redundancy.plans import RedundancyOptions
from research.redundancy.summary import DEMO_GOALS, summary_of, text_of

# Questions at most on which layers are ranked and the best attention is found; none is measured.
_NUM_CHOOSING = 64
# The last image to choose on may have more questions than are needed.
_SPARE = 64


def redundancy(
    model: Annotated[str, typer.Option(help="demo, or a transformers folder.")] = "demo",
    benchmark: Annotated[str, typer.Option(help="Which questions to ask and grade.")] = "demo",
    data: Annotated[
        str | None, typer.Option(help="Instead: JSONL of {image, question}, without answers.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Questions to measure.", min=1)] = 300,
    seed: Annotated[int, typer.Option(help="Of questions, draws and noise.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for JSON, Markdown and figure (extra plots).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Skip layers and drop tokens by several rules, as in Figure 2 of PAR."""
    if output is not None and not is_installed("matplotlib"):
        raise typer.BadParameter("the figure needs the extra plots: pip install allrounder[plots]")
    logging.basicConfig(level=logging.WARNING)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        choosing_on, measured = _questions(benchmark, data, samples, seed)
        frozen = FrozenModel(load_adapter(model, device=device, dtype=dtype))
        choosing = choose(frozen, choosing_on)
        with tqdm(total=measured.num_questions, unit="question") as bar:
            found = measure(
                frozen, measured, choosing, RedundancyOptions(seed=seed), tick=bar.update
            )
    except AllrounderError as err:
        typer.echo(f"research.redundancy: {err.message}", err=True)
        raise typer.Exit(1) from err
    goals = DEMO_GOALS if model == "demo" else ()
    facts = {"model": frozen.adapter.name, "data": data or benchmark, "seed": seed}
    summary = {**facts, **summary_of(found, goals)}
    if output is not None:
        _write(output, summary, text_of(summary))
    typer.echo(json.dumps(summary) if as_json else text_of(summary))


def _questions(
    benchmark: str, data: str | None, samples: int, seed: int
) -> tuple[Questions, Questions]:
    """Questions to choose on and questions to measure, no image in both."""
    num_choosing = min(_NUM_CHOOSING, samples)
    wanted = samples + num_choosing + _SPARE
    if data is not None:
        questions = Questions(images=load_images(data, num_samples=wanted, seed=seed))
    elif benchmark in BENCHMARKS:
        questions = questions_of(BENCHMARKS[benchmark](None).items(limit=wanted, seed=seed))
    else:
        known = ", ".join(BENCHMARKS)
        raise typer.BadParameter(f"unknown benchmark {benchmark!r}; known: {known}")
    first, rest = split_questions(
        questions,
        num_first=min(num_choosing, questions.num_questions // 4),
        num_second=samples,
    )
    if not rest.num_questions:
        raise typer.BadParameter("all questions are about one image; more are needed")
    return first, rest


def _write(folder: Path, summary: dict[str, object], text: str) -> None:
    from research.redundancy.figure import plot_redundancy

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "redundancy.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "redundancy.md").write_text(text + "\n", encoding="utf-8")
    plot_redundancy(summary, folder / "redundancy.png")


if __name__ == "__main__":
    typer.run(redundancy)
