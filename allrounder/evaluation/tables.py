"""Cells to Markdown tables, in the forms of PAR's Tables 1 to 3 and of AutoPrune's headline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Cell = dict[str, Any]
Column = tuple[str, Callable[[Cell], str]]

LEVELS = ("token", "layer", "joint")


def plain_table(cells: Sequence[Cell]) -> str:
    """One line a cell: what `allrounder evaluate` prints."""
    columns: tuple[Column, ...] = (
        ("strategy", lambda cell: str(cell["strategy"])),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("accuracy", _accuracy),
        ("same as dense", lambda cell: percent(cell["loyalty"])),
        ("prefill FLOPs", lambda cell: percent(cell["flops_ratio"])),
        ("KV bytes", _kv),
        ("latency", _latency),
    )
    return table(columns, cells)


def main_table(cells: Sequence[Cell]) -> str:
    """PAR's Table 1: every strategy at one budget, dense first."""
    columns: tuple[Column, ...] = (
        ("strategy", _name),
        ("n", lambda cell: f"{cell['n']:,}"),
        ("prefill FLOPs", lambda cell: percent(cell["flops_ratio"])),
        ("FLOPs as PAR counts", lambda cell: percent(cell["par_paper_ratio"])),
        ("accuracy", _accuracy),
        ("beside dense", lambda cell: points(cell["dense"])),
        ("same as dense", _loyalty),
        ("KL", _kl),
        ("KV bytes", lambda cell: percent(cell["kv_ratio"])),
        ("latency", _latency),
    )
    return table(columns, cells)


def level_table(cells: Sequence[Cell]) -> str:
    """PAR's Table 2: who drops tokens only, skips layers only, or does both."""
    columns: tuple[Column, ...] = (
        ("level", lambda cell: str(cell["level"])),
        ("strategy", _name),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("tokens kept", lambda cell: percent(cell["tokens_ratio"])),
        ("layers run", lambda cell: percent(cell["layers_ratio"])),
        ("prefill FLOPs", lambda cell: percent(cell["flops_ratio"])),
        ("accuracy", _accuracy),
        ("beside dense", lambda cell: points(cell["dense"])),
        ("KL", _kl),
    )
    ordered = [cell for level in LEVELS for cell in cells if cell.get("level") == level]
    return table(columns, ordered)


def router_table(cells: Sequence[Cell]) -> str:
    """PAR's Table 3, the ablation: the same strategy with each router, beside the first."""
    first: dict[tuple[str, str], str] = {}
    for cell in cells:
        first.setdefault((cell["base"], cell["budget_label"]), cell["strategy"])

    def beside(cell: Cell) -> str:
        return points(cell["paired"].get(first[cell["base"], cell["budget_label"]]))

    columns: tuple[Column, ...] = (
        ("row", _name),
        ("router", lambda cell: f"`{cell['router']}`"),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("prefill FLOPs", lambda cell: percent(cell["flops_ratio"])),
        ("accuracy", _accuracy),
        ("beside the first", beside),
        ("same as dense", _loyalty),
        ("KL", _kl),
    )
    return table(columns, cells)


def headline_table(cells: Sequence[Cell], *, rival: str | None) -> str:
    """AutoPrune's headline: accuracy retained at a share of tokens, and FLOPs cut."""
    columns: tuple[Column, ...] = (
        ("strategy", _name),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("tokens pruned", lambda cell: percent(1 - cell["tokens_ratio"])),
        ("FLOPs cut", lambda cell: percent(1 - cell["flops_ratio"])),
        ("all FLOPs cut", lambda cell: percent(1 - cell["total_flops_ratio"])),
        ("accuracy retained", _retained),
    )
    if rival is not None:
        columns += ((f"beside {rival}", lambda cell: points(cell["paired"].get(rival))),)
    return table(columns, cells)


def type_table(cells: Sequence[Cell]) -> str:
    """Accuracy by type of question."""
    types = sorted({name for cell in cells for name in cell["by_type"]})

    def of_type(name: str) -> Callable[[Cell], str]:
        return lambda cell: _plus_minus(cell["by_type"].get(name), "accuracy")

    return table((("strategy", _name), *((name, of_type(name)) for name in types)), cells)


def paired_table(cells: Sequence[Cell], *, subject: str) -> str:
    """Points by which `subject` is ahead of every other, over the same questions."""
    budgets = list(dict.fromkeys(cell["budget_label"] for cell in cells))
    of_budget = {cell["budget_label"]: cell for cell in cells if cell["strategy"] == subject}
    others = list(dict.fromkeys(name for cell in of_budget.values() for name in cell["paired"]))
    rows = [
        [name, *(points(_pair(of_budget.get(budget), name)) for budget in budgets)]
        for name in others
    ]
    return markdown([f"{subject} less", *budgets], rows)


def infeasible_table(found: Sequence[Cell]) -> str:
    columns: tuple[Column, ...] = (
        ("strategy", lambda cell: str(cell["strategy"])),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("reason", lambda cell: str(cell["reason"])),
    )
    return table(columns, found)


def choice_table(cells: Sequence[Cell]) -> str:
    """The values that each search tried, and the one chosen."""
    columns: tuple[Column, ...] = (
        ("strategy", lambda cell: str(cell["strategy"])),
        ("budget", lambda cell: str(cell["budget_label"])),
        ("taken", lambda cell: f"{cell['choice']['knob']} = {cell['choice']['value']}"),
        ("accuracy where it was chosen", _tried),
        ("questions", lambda cell: f"{cell['choice']['num_items']} of seed {_seed(cell)}"),
    )
    return table(columns, cells)


def table(columns: Sequence[Column], cells: Iterable[Cell]) -> str:
    return markdown(
        [title for title, _ in columns], [[show(cell) for _, show in columns] for cell in cells]
    )


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def points(found: dict[str, Any] | None) -> str:
    """A paired difference in percentage points."""
    if found is None:
        return ""
    return f"{100 * found['difference']:+.1f} ± {100 * found['stderr']:.1f}"


def _name(cell: Cell) -> str:
    """With the value that the search chose."""
    choice = cell.get("choice")
    taken = f" ({choice['knob']} {choice['value']})" if choice else ""
    return f"{cell['strategy']}{taken}"


def _accuracy(cell: Cell) -> str:
    return f"{_plus_minus(cell, 'accuracy')} %"


def _loyalty(cell: Cell) -> str:
    if cell["loyalty"] is None:
        return ""
    return f"{100 * cell['loyalty']:.1f} ± {100 * cell['loyalty_stderr']:.1f} %"


def _retained(cell: Cell) -> str:
    return "" if cell["retained"] is None else f"{_plus_minus(cell['retained'], 'ratio')} %"


def _kl(cell: Cell) -> str:
    if cell["kl_nats"] is None:
        return ""
    return f"{cell['kl_nats']:.3f} ± {cell['kl_stderr']:.3f}"


def _kv(cell: Cell) -> str:
    return f"{cell['kv_bytes'] / 1024:.0f} KiB"


def _latency(cell: Cell) -> str:
    if cell["latency_ms"] is None:
        return ""
    ratio = cell["latency_ratio"]
    return f"{cell['latency_ms']:.0f} ms" + ("" if ratio is None else f" (x{ratio:.2f})")


def _plus_minus(found: dict[str, Any] | None, name: str) -> str:
    if found is None:
        return ""
    return f"{100 * found[name]:.1f} ± {100 * found['stderr']:.1f}"


def _pair(cell: Cell | None, other: str) -> dict[str, Any] | None:
    return None if cell is None else cell["paired"].get(other)


def _tried(cell: Cell) -> str:
    tried = cell["choice"]["tried"].items()
    return ", ".join(
        f"{value}: {percent(found)}" for value, found in tried if isinstance(found, float)
    )


def _seed(cell: Cell) -> str:
    return str(cell["choice"]["seed"])
