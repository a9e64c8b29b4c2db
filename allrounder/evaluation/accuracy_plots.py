"""Accuracy over what it costs, as pictures. Needs the extra `plots`; the same cells, same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from allrounder.evaluation.cell_store import write_whole

# Okabe and Ito's colours: told apart with any colour vision; shapes tell apart what repeats them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_accuracy(
    cells: Sequence[dict[str, Any]], path: Path, *, over: str, title: str, dense: float | None
) -> bool:
    """Accuracy with its standard error over the share of dense in `over`; False without points."""
    curves = _curves(cells, over)
    if not curves:
        return False
    with mpl.rc_context():
        mpl.rcParams["svg.hashsalt"] = "allrounder"
        mpl.rcParams["svg.fonttype"] = "none"
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for idx, (name, points) in enumerate(curves.items()):
            xs, ys, errors = zip(*sorted(points), strict=True)
            axes.errorbar(
                xs,
                ys,
                yerr=errors,
                label=name,
                color=_COLOURS[idx % len(_COLOURS)],
                marker=_MARKERS[idx % len(_MARKERS)],
                linestyle=("-", "--", ":")[idx // len(_COLOURS) % 3],
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
        if dense is not None:
            axes.axhline(100 * dense, color="#777777", linewidth=0.8, label="dense")
        axes.set_xlabel(title)
        axes.set_ylabel("accuracy, %")
        axes.grid(visible=True, linewidth=0.3)
        figure.legend(loc="outside right upper", frameon=False)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_whole(path, drawn.getvalue())
    return True


def _curves(
    cells: Sequence[dict[str, Any]], over: str
) -> dict[str, list[tuple[float, float, float]]]:
    """Points (share in %, accuracy in %, its error) by strategy."""
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for cell in cells:
        if cell[over] is not None and cell["level"] != "nothing":
            point = (100 * cell[over], 100 * cell["accuracy"], 100 * cell["stderr"])
            curves[cell["strategy"]].append(point)
    return curves
