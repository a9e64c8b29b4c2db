"""Rows as pictures. Needs the extra `plots`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from allrounder.bench.rows import Row

_BAR_INCHES = 0.32
_RATE = "rate-"
_CURVES = (("ttft-p50", "ttft-p99"), ("e2e-p50", "e2e-p99"), ("throughput", "goodput"))


def plot_ratios(rows: Sequence[Row], path: Path) -> None:
    """Bars of every ratio with its standard error."""
    shown = [(row.name, row.ratio, row.stderr or 0.0) for row in rows if row.ratio is not None]
    names = [name for name, _, _ in shown]
    ratios = [ratio for _, ratio, _ in shown]
    errors = [error for _, _, error in shown]
    figure = Figure(figsize=(8, 1 + _BAR_INCHES * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), ratios, xerr=errors, color="#4878a8")
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("value / baseline")
    figure.savefig(path)


def plot_rates(rows: Sequence[Row], path: Path) -> None:
    """Latency and goodput over the offered rate, a curve for each target."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, metrics in zip(figure.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for metric in metrics:
            for target, points in _curves(rows, metric).items():
                xs, ys = zip(*sorted(points), strict=True)
                axes.plot(xs, ys, marker="o", label=f"{target} {metric}")
        axes.set_xlabel("offered requests/s")
        axes.set_ylabel("requests/s" if "goodput" in metrics else "ms")
        if axes.has_data():
            axes.legend()
    figure.savefig(path)


def _curves(rows: Sequence[Row], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Points (rate, value) of one metric by target."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        target, _, rest = row.name.partition("/")
        rate, _, name = rest.partition("/")
        if name == metric and rate.startswith(_RATE):
            curves[target].append((float(rate.removeprefix(_RATE)), row.value))
    return curves
