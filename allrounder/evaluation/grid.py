"""The grid to run, from what a command line spells: strategies, budgets, questions of each.

`fastv:layer=3/x=1` sets knobs, `fastv:best` searches one, `fastv:best+shortgpt` composes;
`tokens=24/layers=12` is the budget `{"tokens": 24, "layers": 12}`, and `tokens=12%` a share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from allrounder.budget import parse_budget
from allrounder.core import BudgetRequest
from allrounder.errors import InvalidField
from allrounder.evaluation.defaults import SEARCHES, Search

DENSE = "none"
BEST = "best"
OTHERS = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class GridBudget:
    """A budget: `wire` as a request's body holds it, `label` as tables name it."""

    label: str
    wire: Any = field(compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A row of the tables: a strategy with its knobs, and with a router where it reads one.

    Attributes:
        strategy: as a request names it.
        router: name among the routers under test; None is the model's own.
        search: the knob that is still to be chosen for each budget.
    """

    label: str
    strategy: str
    options: tuple[tuple[str, Any], ...] = ()
    router: str | None = None
    search: Search | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A contender at a budget, on the first `num_items` questions."""

    contender: Contender
    budget: GridBudget
    num_items: int

    def __str__(self) -> str:
        return f"{self.contender.label} at {self.budget.label}"

    def request(self) -> BudgetRequest:
        contender = self.contender
        parsed = parse_budget(self.budget.wire)
        return replace(parsed, strategy=contender.strategy, options=dict(contender.options))

    def tried(self, value: Any, *, num_items: int) -> Setting:
        """The same with the searched knob set."""
        contender = self.contender
        assert contender.search is not None, "only a search has values to try"
        options = (*contender.options, (contender.search.knob, value))
        chosen = replace(contender, options=options, search=None)
        return replace(self, contender=chosen, num_items=num_items)


WHOLE = GridBudget(label="1", wire=1)


def parse_contender(text: str) -> Contender:
    """Raises InvalidField where a part cannot be read; names are not checked here."""
    names, options, search = [], {}, None
    for part in text.split("+"):
        name, _, knobs = part.partition(":")
        names.append(name)
        if knobs == BEST:
            if name not in SEARCHES:
                known = ", ".join(SEARCHES)
                raise InvalidField(f"{text}: only {known} can be searched", param="strategies")
            search = SEARCHES[name]
        elif knobs:
            options.update(_pairs(knobs, "strategies"))
    return Contender(
        label=text, strategy="+".join(names), options=tuple(options.items()), search=search
    )


def parse_grid_budget(text: str, *, num_visual: int | None) -> GridBudget:
    """`num_visual`: tokens of one image, for shares. Raises InvalidField as a request would."""
    if "=" not in text:
        wire = _value(text)
        label = f"{wire:g}" if isinstance(wire, int | float) else text
    else:
        label = text
        wire = {
            key: _count(value, num_visual) if isinstance(value, str) else value
            for key, value in _pairs(text, "budgets").items()
        }
    parse_budget(wire)
    return GridBudget(label=label, wire=wire)


def parse_limits(text: str) -> dict[str, int]:
    """`par=4000,*=1000`."""
    limits = {}
    for pair in filter(None, text.split(",")):
        name, _, count = pair.rpartition("=")
        if not name or not count.isdecimal() or int(count) < 1:
            raise InvalidField(f"{pair!r} is no strategy=count", param="limits")
        limits[name] = int(count)
    return limits


def settings_of(
    contenders: Sequence[Contender],
    budgets: Sequence[GridBudget],
    *,
    limit: int = 1000,
    limits: Mapping[str, int] | None = None,
) -> list[Setting]:
    """The grid in order; dense is run once, at budget 1."""
    found = limits or {}
    return [
        Setting(contender=contender, budget=budget, num_items=_limit(contender, found, limit))
        for contender in contenders
        for budget in ([WHOLE] if contender.strategy == DENSE else budgets)
    ]


def with_routers(
    contenders: Iterable[Contender], names: Sequence[str], reads_router: Mapping[str, bool]
) -> list[Contender]:
    """A row per named router of each contender that reads one; `reads_router` by strategy."""
    return [
        row
        for contender in contenders
        for row in (
            [replace(contender, label=f"{contender.label}@{name}", router=name) for name in names]
            if names and reads_router[contender.strategy]
            else [contender]
        )
    ]


def _limit(contender: Contender, limits: Mapping[str, int], default: int) -> int:
    for name in (contender.label, contender.strategy, OTHERS):
        if name in limits:
            return limits[name]
    return default


def _pairs(text: str, param: str) -> dict[str, Any]:
    pairs = {}
    for pair in text.split("/"):
        key, equals, value = pair.partition("=")
        if not key or not equals or not value:
            raise InvalidField(f"{pair!r} is no key=value", param=param)
        pairs[key] = _value(value)
    return pairs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _count(text: str, num_visual: int | None) -> Any:
    if not text.endswith("%"):
        return text
    if num_visual is None:
        raise InvalidField(
            f"{text}: this model's images have no fixed number of visual tokens", param="budgets"
        )
    try:
        return max(1, round(float(text[:-1]) / 100 * num_visual))
    except ValueError as err:
        raise InvalidField(f"{text!r} is no share", param="budgets") from err
