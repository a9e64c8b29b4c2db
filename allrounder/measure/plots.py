"""Curves and bars with error bars as image files: the home of matplotlib (extra `plots`).

The same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# x, y, and the standard error of y where there is one.
Point = tuple[float, float, float | None]

# Okabe and Ito's colours: told apart with any colour vision; shapes tell apart what repeats them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":")
_BAR_INCHES = 0.32
_DPI = 110
# What matplotlib would write of its version and of the time.
_METADATA = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes.

    Attributes:
        curves: points by name; without points there is no curve.
        baseline: name and height of a horizontal line.
        left: where the horizontal axis begins.
        span: ends of the vertical axis.
    """

    xlabel: str
    ylabel: str
    curves: Mapping[str, Sequence[Point]]
    title: str = ""
    baseline: tuple[str, float] | None = None
    left: float | None = None
    span: tuple[float, float] | None = None


def draw_curves(
    panels: Sequence[Panel], *, size: tuple[float, float], suffix: str, columns: int = 1
) -> bytes:
    """Panels row by row; `size` is in inches, `suffix` the file's: `.svg`, `.png`."""
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _draw(axes, panel)
        if len(panels) == 1:
            figure.legend(loc="outside right upper", frameon=False)
        else:
            for axes in grid.flat:
                if axes.has_data():
                    axes.legend(fontsize="small")
        return _rendered(figure, suffix)


def draw_bars(
    bars: Mapping[str, tuple[float, float | None]], *, xlabel: str, baseline: float, suffix: str
) -> bytes:
    """Horizontal bars, value and standard error by name, beside a vertical line."""
    with _style():
        figure = Figure(figsize=(8, 1 + _BAR_INCHES * len(bars)), layout="constrained")
        axes = figure.subplots()
        axes.barh(
            range(len(bars)),
            [value for value, _ in bars.values()],
            xerr=[error or 0.0 for _, error in bars.values()],
            color=_COLOURS[0],
        )
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.axvline(baseline, color="black", linewidth=0.8)
        axes.set_xlabel(xlabel)
        return _rendered(figure, suffix)


def _draw(axes: Axes, panel: Panel) -> None:
    for idx, (name, points) in enumerate(panel.curves.items()):
        xs, ys, errors = zip(*sorted(points), strict=True)
        axes.errorbar(
            xs,
            ys,
            yerr=None if None in errors else errors,
            label=name,
            color=_COLOURS[idx % len(_COLOURS)],
            marker=_MARKERS[idx % len(_MARKERS)],
            linestyle=_LINES[idx // len(_COLOURS) % len(_LINES)],
            markersize=5,
            linewidth=1.2,
            capsize=2,
        )
    if panel.baseline is not None:
        name, height = panel.baseline
        axes.axhline(height, color="#777777", linewidth=0.8, label=name)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.grid(visible=True, linewidth=0.3)
    if panel.left is not None:
        axes.set_xlim(left=panel.left)
    if panel.span is not None:
        axes.set_ylim(*panel.span)


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context({"svg.hashsalt": "allrounder", "svg.fonttype": "none"})


def _rendered(figure: Figure, suffix: str) -> bytes:
    kind = suffix.removeprefix(".") or "png"
    drawn = BytesIO()
    figure.savefig(drawn, format=kind, dpi=_DPI, metadata=_METADATA.get(kind))
    return drawn.getvalue()
