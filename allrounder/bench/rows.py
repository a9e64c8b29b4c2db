"""Rows of a benchmark as JSON, Markdown and bars. Knows nothing of what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allrounder.measure.statistics import Estimate, bootstrapped, percentile, ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class RatioGoal:
    """The ratio that is aimed at: at least, or at most."""

    ratio: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.ratio:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRow:
    """One figure.

    Attributes:
        baseline: what it is compared with, in the same unit.
        ratio: value over baseline; the median of ratios taken round by round where both were timed.
        goal: what the ratio is held to, if anything.
        stderr: of the ratio where there is one, else of the value.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: RatioGoal | None = None
    n: int = 1
    stderr: float | None = None

    def as_json(self) -> dict[str, Any]:
        fields = {
            "name": self.name,
            "value": _finite(self.value),
            "unit": self.unit,
            "baseline": _finite(self.baseline),
            "ratio": _finite(self.ratio),
            "n": self.n,
            "stderr": _finite(self.stderr),
        }
        if self.goal is None or self.ratio is None:
            return fields
        return {**fields, "target": self.goal.ratio, "met": self.goal.is_met(self.ratio)}

    @property
    def verdict(self) -> str:
        """The goal and whether it is met, for a table."""
        if self.goal is None or self.ratio is None:
            return ""
        return f"{self.goal} {'met' if self.goal.is_met(self.ratio) else 'missed'}"


def row_of(name: str, found: Estimate, unit: str) -> BenchRow:
    return BenchRow(
        name=name, value=found.value, unit=unit, n=found.n, stderr=_finite(found.stderr)
    )


def compared(
    name: str,
    values: Sequence[float],
    baselines: Sequence[float],
    unit: str,
) -> BenchRow:
    """Medians of both over the same rounds, and of their ratio in each."""
    ratio = bootstrapped(ratios(values, baselines))
    return BenchRow(
        name=name,
        value=percentile(values, 50),
        unit=unit,
        baseline=percentile(baselines, 50),
        ratio=ratio.value,
        n=ratio.n,
        stderr=_finite(ratio.stderr),
    )


def counted(name: str, value: float, unit: str, baseline: float | None = None) -> BenchRow:
    """A figure that is computed or counted, not timed."""
    ratio = value / baseline if baseline else None
    return BenchRow(name=name, value=value, unit=unit, baseline=baseline, ratio=ratio)


def report(environment: Mapping[str, Any], rows: Sequence[BenchRow]) -> dict[str, Any]:
    return {"environment": dict(environment), "rows": [row.as_json() for row in rows]}


def text_of(environment: Mapping[str, Any], rows: Sequence[BenchRow], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(report(environment, rows), allow_nan=False)
    return table_of(environment, rows)


def table_of(environment: Mapping[str, Any], rows: Sequence[BenchRow]) -> str:
    """What it ran on, then Markdown: one line a row."""
    lines = [f"{key}: {_plain(value)}" for key, value in environment.items() if value is not None]
    lines += [
        "",
        "| name | value | baseline | ratio | target | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "" if row.stderr is None else f" ± {_short(row.stderr)}"
        has_ratio = row.ratio is not None
        lines.append(
            f"| {row.name} | {_short(row.value)} {row.unit}{'' if has_ratio else error} "
            f"| {_short(row.baseline)} | {_short(row.ratio)}{error if has_ratio else ''} "
            f"| {row.verdict} | {row.n} |"
        )
    return "\n".join(lines)


def plot_ratios(rows: Sequence[BenchRow], path: Path) -> None:
    """Bars of every ratio with its standard error. Needs the extra `plots`."""
    from allrounder.measure.plots import draw_bars

    bars = {row.name: (row.ratio, row.stderr) for row in rows if row.ratio is not None}
    drawn = draw_bars(bars, xlabel="value / baseline", baseline=1, suffix=path.suffix)
    path.write_bytes(drawn)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return str(value)
