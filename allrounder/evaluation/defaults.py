"""The grids of `allrounder evaluate`, `--short` and `--full`, and what a search tries.

Edit here. Names that the registry does not hold are left out of a preset with a logged line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A grid as the command line would spell it.

    Attributes:
        limits: strategy -> questions; `*` is every other.
    """

    strategies: tuple[str, ...]
    budgets: tuple[str, ...]
    limits: Mapping[str, int]
    output: Path | None = None
    timed: int = 50
    selection: int = 400


BASIC = Preset(strategies=("none", "par"), budgets=("1", "0.5", "0.25"), limits={"*": 1000})

FULL = Preset(
    strategies=(
        "none",
        "par",
        "par-token",
        "par-layer",
        "random",
        "fastv:best",
        "fastv:best+shortgpt",
        "pdrop",
        "llavolta",
        "autoprune",
        "mmtok",
        "divprune",
        "cdpruner",
        "visionzip",
        "prumerge",
        "pool",
        "shortgpt",
    ),
    budgets=("0.5", "0.35", "0.25", "0.13", "tokens=12%", "tokens=6%"),
    limits={"none": 4000, "par": 4000, "cdpruner": 4000, "*": 1000},
    output=Path("evaluation/full"),
    timed=20,
    selection=150,
)

SHORT = Preset(
    strategies=("none", "random", "fastv:best", "par"),
    budgets=("0.5", "0.35", "0.25"),
    limits={"*": 500},
    output=Path("evaluation/short"),
    timed=20,
    selection=150,
)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The knob that `strategy:best` sets, and the values that it tries."""

    knob: str
    values: tuple[Any, ...]


SEARCHES: Mapping[str, Search] = {"fastv": Search(knob="layer", values=(1, 2, 3, 4, 5, 6, 8, 12))}
# Added to the seed of the test items: what a search chooses on are other images.
SELECTION_SEED = 1_000_003
