"""Draws panels of the dashboard from a real run: `python -m tools.dashboard_plots`.

Starts a server and a Prometheus as the tests do, makes traffic, and writes pictures of what
Prometheus then answers to docs/images. They show the panels' own expressions, not Grafana.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from allrounder.bench.own_server import own_server
from tests.deploy.expressions import Expression, panels
from tests.deploy.live import Prometheus, Series, make_traffic, running_prometheus

FOLDER = Path(__file__).parents[1] / "docs" / "images"
WINDOW = "6s"
FIGURES = {
    "compute": (
        "Decoder FLOPs",
        "Share of dense FLOPs saved",
        "Budget, asked and spent",
        "Visual tokens kept",
        "Decoder layers skipped",
        "Router cost",
    ),
    "service": (
        "Time to first token",
        "Inter-token latency",
        "Stages, p95",
        "Requests running and waiting",
        "Room for keys and values held",
        "HTTP answers by status",
    ),
}
COLUMNS = 3


def draw_figures(prometheus: Prometheus, folder: Path, *, start: float, end: float) -> list[Path]:
    """One picture per group of panels, in `folder`."""
    by_title = {panel["title"]: panel for panel in panels()}
    paths = []
    for name, titles in FIGURES.items():
        rows = -(-len(titles) // COLUMNS)
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.9 * rows), layout="constrained")
        for title, axis in zip(titles, axes.flat, strict=True):
            _draw(axis, by_title[title], prometheus, start, end)
        paths.append(folder / f"dashboard-{name}.png")
        figure.savefig(paths[-1], dpi=75)
        plt.close(figure)
    return paths


def _draw(
    axis: Axes, panel: dict[str, Any], prometheus: Prometheus, start: float, end: float
) -> None:
    styles = itertools.cycle(("-", "--", "-.", ":"))
    for target in panel["targets"]:
        asked = Expression(place=panel["title"], text=target["expr"])
        for series in prometheus.query_range(
            asked.with_values(window=WINDOW), start=start, end=end
        ):
            times, values = _points(series, start)
            legend = _legend(target["legendFormat"], series)
            axis.plot(times, values, label=legend, linestyle=next(styles), linewidth=1.4)
    axis.set_title(panel["title"], fontsize=10)
    axis.set_xlim(0, end - start)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, framealpha=0.7)
    if formatter := _formatter(panel["fieldConfig"]["defaults"]["unit"]):
        axis.yaxis.set_major_formatter(formatter)


def _points(series: Series, start: float) -> tuple[list[float], list[float]]:
    points = [(at - start, float(text)) for at, text in series["values"]]
    return [at for at, _ in points], [value for _, value in points]


def _legend(pattern: str, series: Series) -> str:
    labels = series["metric"] | {"instance": "server"}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern)


def _formatter(unit: str) -> FuncFormatter | PercentFormatter | None:
    if unit == "percentunit":
        return PercentFormatter(xmax=1, decimals=None)
    if unit == "s":
        return FuncFormatter(lambda value, _: f"{value:g} s")
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the traffic lasts")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    options = parser.parse_args(arguments)
    mpl.use("Agg")
    options.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data,
        own_server(["--threads", "1"]) as url,
        running_prometheus(url, Path(data)) as prometheus,
    ):
        start = time.time()
        make_traffic(url, seconds=options.seconds)
        draw_figures(prometheus, options.folder, start=start, end=time.time())


if __name__ == "__main__":
    main()
