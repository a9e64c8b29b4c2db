"""What rules and dashboard ask Prometheus, read from the files that are shipped."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "allrounder.json"

_METRIC = re.compile(r"(?<![:\w])allrounder_\w+")
_HISTOGRAM_PART = re.compile(r"_(bucket|sum|count)$")
_CONJUNCTION = re.compile(r"\band on \([^)]*\)")
_COMPARISON = re.compile(r"\s*(==|!=|>=?|<=?)\s*[\d.]+\s*$")


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One question to Prometheus, and where it stands."""

    place: str
    text: str

    @property
    def metrics(self) -> set[str]:
        """Names of our own metrics in it, without the parts of a histogram."""
        return {_HISTOGRAM_PART.sub("", name) for name in _METRIC.findall(self.text)}

    def without_comparisons(self) -> list[str]:
        """The sides of an alert's conditions that have to have data for it ever to fire."""
        sides = [side.strip() for side in _CONJUNCTION.split(self.text)]
        assert all(_COMPARISON.search(side) for side in sides), self.text
        return [_COMPARISON.sub("", side) for side in sides]

    def with_values(self, *, window: str) -> str:
        """Grafana's variables replaced: everything is chosen."""
        text = self.text.replace("$__rate_interval", window)
        text = text.replace("$job", ".*").replace("$instance", ".*")
        assert "$" not in text, f"{self.place}: an unknown variable in {text}"
        return text


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Every rule of a kind, `record` or `alert`, by its name."""
    found = {}
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if kind in rule:
                    assert rule[kind] not in found, f"{rule[kind]} is there twice"
                    found[rule[kind]] = rule
    return found


def recorded() -> list[Expression]:
    return [Expression(place=name, text=rule["expr"]) for name, rule in rules("record").items()]


def alerts() -> list[Expression]:
    return [Expression(place=name, text=rule["expr"]) for name, rule in rules("alert").items()]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def drawn() -> list[Expression]:
    return [
        Expression(place=f"{panel['title']}: {target['legendFormat']}", text=target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
