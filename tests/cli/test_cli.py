"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from allrounder.cli import evaluate
from allrounder_service.cli.main import cli


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["chat"],
        ["plan"],
        ["evaluate"],
        ["doctor"],
        ["bench"],
        ["bench", "engine"],
        ["bench", "serve"],
        ["train"],
        ["serve"],
        ["train", "router"],
    ],
    ids=" ".join,
)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "--" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "x"],
        ["serve", "--nonsense", "1"],
        ["evaluate", "--benchmark", "x"],
        ["evaluate", "--strategies", "parr"],
        ["evaluate", "--strategies", "fastv:colour=3"],
        ["evaluate", "--budgets", "colour=3"],
        ["evaluate", "--limits", "par"],
        ["evaluate", "--routers", "par"],
        ["train", "router", "--model", "demo"],
        ["chat", "--image", "nowhere.png", "--question", "x"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused_with_a_code(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def test_help_loads_no_torch() -> None:
    code = "import allrounder_service.cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.timeout(120)
def test_evaluate_prints_cells_and_nothing_else() -> None:
    arguments = [
        "--strategies",
        "none,random",
        "--budgets",
        "1,0.5",
        "--limit",
        "12",
        "--timed",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert result.exit_code == 0, result.stderr
    cells = json.loads(result.stdout)["cells"]
    assert [(cell["strategy"], cell["budget"]) for cell in cells] == [
        ("none", 1),
        ("random", 1),
        ("random", 0.5),
    ]
    assert {"benchmark", "accuracy", "n", "stderr", "flops_ratio", "loyalty", "by_type"} <= set(
        cells[0]
    )
    assert cells[0]["accuracy"] == cells[1]["accuracy"]
    assert cells[2]["flops_ratio"] <= 0.5
    assert cells[1]["kl_nats"] < 1e-5 < cells[2]["kl_nats"]


@pytest.mark.timeout(120)
def test_evaluate_takes_up_what_a_folder_holds(tmp_path: Path) -> None:
    arguments = ["--strategies", "none,shortgpt", "--budgets", "0.8,tokens=5%"]
    shown = [
        CliRunner().invoke(
            cli,
            ["evaluate", *arguments, "--limit", "8", "--timed", "1", "--output", str(tmp_path)],
        )
        for _ in range(2)
    ]
    assert [result.exit_code for result in shown] == [0, 0]
    assert shown[0].stdout == shown[1].stdout
    assert "shortgpt | tokens=5%" in shown[0].stdout
    assert "drops no visual tokens" in shown[0].stdout
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "accuracy-flops.svg").is_file()


def test_a_subcommand_of_evaluate_runs_alone() -> None:
    own = typer.Typer()
    evaluate.register(own)
    (group,) = own.registered_groups
    assert group.typer_instance is not None

    def score() -> None:
        typer.echo("scored")

    group.typer_instance.command()(score)
    result = CliRunner().invoke(own, ["evaluate", "score"])
    assert (result.exit_code, result.stdout) == (0, "scored\n")
