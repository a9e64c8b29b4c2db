"""Rows as JSON, as a table and as an image."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from allrounder.bench.engine_rows import GOALS_MODEL, with_goals
from allrounder.bench.rows import RatioGoal, compared, counted, plot_ratios, report, table_of
from allrounder.bench.serve_rows import plot_rates
from allrounder.measure.environment import commit, environment

ROWS = [
    replace(compared("speed", [2.0, 4.0, 6.0], [1.0, 1.0, 3.0], "x"), goal=RatioGoal(ratio=1.5)),
    counted("bytes", 50, "bytes", 200),
    counted("nothing", math.nan, "ms"),
]


def test_a_compared_row_has_medians_and_the_median_of_ratios() -> None:
    speed = ROWS[0]
    assert (speed.value, speed.baseline, speed.ratio, speed.n) == (4.0, 1.0, 2.0, 3)
    assert speed.stderr is not None
    assert speed.stderr > 0


def test_json_holds_no_nan_and_a_target_only_where_there_is_one() -> None:
    rows = json.loads(json.dumps(report({"cpu": "x"}, ROWS), allow_nan=False))["rows"]
    assert (rows[0]["target"], rows[0]["met"]) == (1.5, True)
    assert rows[1] == {
        "name": "bytes",
        "value": 50,
        "unit": "bytes",
        "baseline": 200,
        "ratio": 0.25,
        "n": 1,
        "stderr": None,
    }
    assert rows[2]["value"] is None


def test_the_table_says_what_it_ran_on_and_has_a_line_a_row() -> None:
    text = table_of({"cpu": "Fast One", "versions": {"torch": "2"}, "gpu": None}, ROWS)
    assert text.startswith("cpu: Fast One\nversions: torch 2\n\n| name")
    assert "| bytes | 50 bytes | 200 | 0.25 |  | 1 |" in text
    assert "| >= 1.5 met | 3 |" in text
    assert len(text.splitlines()) == 3 + 2 + len(ROWS)


def test_a_goal_is_a_least_or_a_most_and_belongs_to_one_model() -> None:
    least, most = RatioGoal(ratio=2.0), RatioGoal(ratio=0.4, at_most=True)
    assert [least.is_met(ratio) for ratio in (1.9, 2.0)] == [False, True]
    assert [most.is_met(ratio) for ratio in (0.4, 0.5)] == [True, False]
    row = counted("kv-bytes/144x28", 50, "bytes", 100)
    assert with_goals([row], GOALS_MODEL)[0].verdict == "<= 0.4 missed"
    assert with_goals([row], "demo") == [row]


@pytest.mark.timeout(30)
def test_plots_are_image_files(tmp_path: Path) -> None:
    rates = [counted(f"us/rate-{rate}/ttft-p50", 10.0 * rate, "ms") for rate in (1, 2)]
    plot_ratios(ROWS, tmp_path / "ratios.png")
    plot_rates(rates, tmp_path / "rates.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_environment_names_machine_versions_and_the_exact_command() -> None:
    found = environment(["allrounder", "bench", "engine", "--model", "a b"])
    assert found["command"] == "allrounder bench engine --model 'a b'"
    assert found["cores"] >= 1
    assert found["versions"]["torch"].startswith("2.")
    assert found["commit"] == commit()
