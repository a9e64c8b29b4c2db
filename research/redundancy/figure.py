"""The curves as one picture with PAR's panels. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_redundancy(summary: dict[str, Any], path: Path) -> None:
    """PNG; the same summary gives the same bytes."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    (similarity, layers), (tokens, mixed) = figure.subplots(2, 2)
    names = list(dict.fromkeys(cell["tokens"] for cell in summary["similarity"]))
    for column, label in (("all_rows", "all rows"), ("last_row", "last row of the prompt")):
        _similarity(similarity, _of(summary["similarity"], "tokens", names[0]), column, label)
    similarity.set_title("(a) input and output of each layer")
    _curves(layers, summary["layers"], "layers skipped")
    layers.set_title("(a) layers skipped")
    _curves(tokens, summary["tokens"], "visual tokens kept, %", scale=100)
    tokens.set_title("(b) which tokens are kept")
    for name in names:
        _similarity(mixed, _of(summary["similarity"], "tokens", name), "all_rows", name)
    half = len(summary["influence"]) // 2
    mixed.set_xlim(left=half - 0.5)
    shown = [cell["all_rows"] for cell in summary["similarity"] if cell["layer"] >= half]
    mixed.set_ylim(min(shown) - 0.005, max(shown) + 0.005)
    mixed.set_title("(c) the last half of the layers, by tokens kept")
    for axes in (similarity, layers, tokens, mixed):
        axes.legend(fontsize="small")
    # Matplotlib would write its version into the file.
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _of(cells: Sequence[dict[str, Any]], key: str, value: str) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell[key] == value]


def _similarity(axes: Axes, cells: Sequence[dict[str, Any]], column: str, label: str) -> None:
    axes.errorbar(
        [cell["layer"] for cell in cells],
        [cell[column] for cell in cells],
        yerr=[cell[f"{column}_stderr"] for cell in cells],
        marker="o",
        markersize=3,
        label=label,
    )
    axes.set_xlabel("layer")
    axes.set_ylabel("cosine similarity")


def _curves(axes: Axes, cells: Sequence[dict[str, Any]], amount: str, *, scale: int = 1) -> None:
    """Accuracy, or agreement with the dense answer where the answers are not known."""
    column = "agreement" if any(cell["accuracy"] is None for cell in cells) else "accuracy"
    for rule in dict.fromkeys(cell["rule"] for cell in cells):
        points = sorted(_of(cells, "rule", rule), key=lambda cell: float(cell["amount"]))
        axes.errorbar(
            [scale * cell["amount"] for cell in points],
            [100 * cell[column] for cell in points],
            yerr=[100 * cell[f"{column}_stderr"] for cell in points],
            marker="o",
            markersize=4,
            capsize=2,
            label=rule,
        )
    axes.set_xlabel(amount)
    axes.set_ylabel("accuracy, %" if column == "accuracy" else "same as dense, %")
