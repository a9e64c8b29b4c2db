"""`allrounder evaluate score` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from allrounder_service.cli.main import cli
from tests.evaluation.scorer_cases import CASES, lines

POPE = CASES[0]


def _arguments(folder: Path) -> list[str]:
    labels = POPE.make(folder / "labels")
    said = [POPE.line(n, text) for n, text in enumerate(POPE.right)]
    answers = lines(folder / "answers.jsonl", said[1:])
    return ["evaluate", "score", "POPE", "--labels", str(labels), "--answers", str(answers)]


def test_json_has_the_figures_and_the_problems(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [*_arguments(tmp_path), "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["benchmark"] == "pope"
    assert set(report["popular"]) == {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    assert report["problems"]["missing"] == {"count": 1, "first": ["1"]}


def test_scoring_has_help_of_its_own_beside_the_runs() -> None:
    for command, option in (("score", "--labels"), ("", "--strategies")):
        result = CliRunner().invoke(cli, ["evaluate", *command.split(), "--help"])
        assert result.exit_code == 0
        assert option in result.output


def test_text_has_a_line_a_figure_and_a_problem(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, _arguments(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert "popular.accuracy" in result.stdout
    assert "missing: 1 ('1', ...)" in result.stdout


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        ({2: "nonsense"}, "known: pope, mme"),
        ({4: "nowhere.json"}, "--labels nowhere.json"),
        ({6: "nowhere.jsonl"}, "--answers nowhere.jsonl"),
    ],
)
def test_unusable_input_is_one_line_and_code_2(
    tmp_path: Path, replaced: dict[int, str], expected: str
) -> None:
    arguments = _arguments(tmp_path)
    for place, value in replaced.items():
        arguments[place] = value
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_labels_are_asked_for_where_answers_carry_none(tmp_path: Path) -> None:
    answers = lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "x"}])
    result = CliRunner().invoke(cli, ["evaluate", "score", "gqa", "--answers", str(answers)])
    assert result.exit_code == 2
    assert "--labels" in result.stderr


@pytest.mark.timeout(60)
def test_scoring_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom allrounder_service.cli.main import cli\n"
        f"cli({_arguments(tmp_path)!r}, standalone_mode=False)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
