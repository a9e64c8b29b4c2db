"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from app.cli.main import cli


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["chat"],
        ["plan"],
        ["evaluate"],
        ["evaluate", "redundancy"],
        ["doctor"],
        ["bench"],
        ["bench", "engine"],
        ["bench", "serve"],
        ["train"],
        ["train", "demo"],
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
        ["train", "router", "--model", "demo"],
        ["chat", "--image", "nowhere.png", "--question", "x"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused_with_a_code(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def test_help_loads_no_torch() -> None:
    code = "import app.cli.main, sys; sys.exit('torch' in sys.modules)"
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
