"""Prometheus' files by its own tool, and that rules, tests, runbook and metrics name each other."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.expressions import (
    DEPLOY,
    ROOT,
    RULES,
    Expression,
    alerts,
    drawn,
    recorded,
    rules,
)

pytestmark = pytest.mark.timeout(60)

PROMETHEUS = DEPLOY / "prometheus"
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
GOLDEN = ROOT / "tests" / "golden" / "metrics.txt"
RUNBOOK = ROOT / "docs" / "runbook.md"


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def exported() -> set[str]:
    return {line.split()[0] for line in GOLDEN.read_text(encoding="utf-8").splitlines()}


def cases(path: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    return loaded


def expected_alerts(path: Path) -> dict[str, list[bool]]:
    """By alert, whether something is expected to fire at each of the times that are looked at."""
    expected: dict[str, list[bool]] = {}
    for case in cases(path):
        for look in case["alert_rule_test"]:
            expected.setdefault(look["alertname"], []).append(bool(look["exp_alerts"]))
    return expected


def test_the_configuration_and_its_rules_are_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", *sorted(RULES.glob("*.yml")))


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    promtool("test", "rules", path)


def test_an_alert_that_does_not_fire_is_noticed(tmp_path: Path) -> None:
    text = (PROMETHEUS / "tests" / "firing.yml").read_text(encoding="utf-8")
    assert "0x10 2x20" in text
    calm = tmp_path / "calm.yml"
    calm.write_text(text.replace("0x10 2x20", "0x30").replace("../rules", str(RULES)))
    with pytest.raises(AssertionError, match="AllrounderDeadLetters"):
        promtool("test", "rules", calm)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_every_group_has_its_turn_in_a_set_order(path: Path) -> None:
    order = yaml.safe_load(path.read_text(encoding="utf-8"))["group_eval_order"]
    groups = [
        group["name"]
        for file in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    assert sorted(order) == sorted(groups)
    assert order[-1] == "allrounder-alerts"


def test_every_alert_is_seen_silent_and_firing_and_is_silent_in_health() -> None:
    names = set(rules("alert"))
    seen = {path.stem: expected_alerts(path) for path in UNIT_TESTS}
    assert set(seen) == {"firing", "healthy", "idle"}
    assert seen["firing"] == {name: [False, True] for name in names}
    for path in UNIT_TESTS:
        if path.stem != "firing":
            looks = [
                [look["alertname"] for look in case["alert_rule_test"]] for case in cases(path)
            ]
            assert all(sorted(each) == sorted(names) for each in looks), path
            assert not any(itertools.chain(*seen[path.stem].values())), path


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    headings = set(re.findall(r"^## (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE))
    assert headings == set(rules("alert"))
    for name, rule in rules("alert").items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"]["summary"].endswith("."), name
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["for"], name


@pytest.mark.parametrize(
    "expression", [*recorded(), *alerts(), *drawn()], ids=lambda expression: expression.place
)
def test_only_metrics_and_rules_that_exist_are_asked_for(expression: Expression) -> None:
    assert expression.metrics <= exported()
    asked = set(re.findall(r"[a-z]+:allrounder_[\w:]+", expression.text))
    assert asked <= set(rules("record"))


def test_every_metric_has_a_panel() -> None:
    shown = set().union(*(each.metrics for each in drawn()))
    assert exported() - shown == set()


def test_every_recording_rule_is_named_by_level_metric_and_operation() -> None:
    names = list(rules("record"))
    assert [n for n in names if not re.fullmatch(r"(instance|lane|queue):\w+:\w+", n)] == []
