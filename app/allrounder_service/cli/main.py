"""Assembles the commands. Each imports what it needs only when it runs."""

from __future__ import annotations

import typer

from allrounder.cli import bench, evaluate, train
from allrounder_service.cli import chat, doctor, jobs, keys, serve

cli = typer.Typer(
    name="allrounder",
    help="Serve frozen vision-language models at a compute budget chosen per request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve.register(cli)
jobs.register(cli)
keys.register(cli)
chat.register(cli)
train.register(cli)
evaluate.register(cli)
bench.register(cli)
doctor.register(cli)


def main() -> None:
    cli()
