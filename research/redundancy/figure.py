"""The curves in PAR's panels. Needs the extra `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allrounder.measure.plots import Panel, Point, draw_curves


def plot_redundancy(summary: dict[str, Any], path: Path) -> None:
    """PNG; the same summary gives the same bytes."""
    cells = summary["similarity"]
    names = list(dict.fromkeys(cell["tokens"] for cell in cells))
    half = len(summary["influence"]) // 2
    shown = [cell["all_rows"] for cell in cells if cell["layer"] >= half]
    panels = [
        _similarity(
            "(a) input and output of each layer",
            {
                label: _points(_of(cells, "tokens", names[0]), "layer", column)
                for column, label in (
                    ("all_rows", "all rows"),
                    ("last_row", "last row of the prompt"),
                )
            },
        ),
        _curves("(a) layers skipped", summary["layers"], "layers skipped"),
        _curves("(b) which tokens are kept", summary["tokens"], "visual tokens kept, %", scale=100),
        _similarity(
            "(c) the last half of the layers, by tokens kept",
            {name: _points(_of(cells, "tokens", name), "layer", "all_rows") for name in names},
            left=half - 0.5,
            span=(min(shown) - 0.005, max(shown) + 0.005),
        ),
    ]
    path.write_bytes(draw_curves(panels, size=(13, 9), suffix=".png", columns=2))


def _of(cells: Sequence[dict[str, Any]], key: str, value: str) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell[key] == value]


def _points(
    cells: Sequence[dict[str, Any]], x: str, y: str, *, x_scale: float = 1, y_scale: float = 1
) -> list[Point]:
    return [(x_scale * cell[x], y_scale * cell[y], y_scale * cell[f"{y}_stderr"]) for cell in cells]


def _similarity(
    title: str,
    curves: dict[str, list[Point]],
    *,
    left: float | None = None,
    span: tuple[float, float] | None = None,
) -> Panel:
    return Panel(
        title=title,
        xlabel="layer",
        ylabel="cosine similarity",
        curves=curves,
        left=left,
        span=span,
    )


def _curves(title: str, cells: Sequence[dict[str, Any]], amount: str, *, scale: float = 1) -> Panel:
    """Accuracy, or agreement with the dense answer where the answers are not known."""
    column = "agreement" if any(cell["accuracy"] is None for cell in cells) else "accuracy"
    return Panel(
        title=title,
        xlabel=amount,
        ylabel="accuracy, %" if column == "accuracy" else "same as dense, %",
        curves={
            rule: _points(_of(cells, "rule", rule), "amount", column, x_scale=scale, y_scale=100)
            for rule in dict.fromkeys(cell["rule"] for cell in cells)
        },
    )
