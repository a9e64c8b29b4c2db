"""Pruning strategies by name.

To add a strategy here: one file with a frozen dataclass that derives from `Strategy`, one line in
`STRATEGIES`, and one row in `tests/cases.py` (it runs against every family: keeps order, respects
the count, is the identity at budget 1, a batch of n equals n singles). One that lives elsewhere is
registered by `register_strategy`, or found under the entry-point group `allrounder.strategies`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter, ValidationError

from allrounder.errors import InvalidField
from allrounder.pruning.autoprune import AutoPrune
from allrounder.pruning.cdpruner import CDPruner
from allrounder.pruning.divprune import DivPrune
from allrounder.pruning.fastv import FastV
from allrounder.pruning.llavolta import LLaVolta
from allrounder.pruning.mmtok import MMTok
from allrounder.pruning.none import NoPruning
from allrounder.pruning.par import Par, ParLayer, ParToken
from allrounder.pruning.pdrop import PyramidDrop
from allrounder.pruning.pooling import Pool
from allrounder.pruning.prumerge import PruMerge
from allrounder.pruning.random import Random
from allrounder.pruning.resize import Resize
from allrounder.pruning.shortgpt import ShortGPT
from allrounder.pruning.strategy import Composed, Strategy
from allrounder.pruning.visionzip import VisionZip

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        NoPruning,
        Random,
        FastV,
        DivPrune,
        CDPruner,
        MMTok,
        VisionZip,
        PruMerge,
        Pool,
        Resize,
        PyramidDrop,
        LLaVolta,
        AutoPrune,
        ShortGPT,
        Par,
        ParToken,
        ParLayer,
    )
}


ENTRY_POINTS = "allrounder.strategies"


def register_strategy(kind: type[Strategy]) -> type[Strategy]:
    """Make a strategy known under its `name`; also a class decorator.

    Raises:
        ValueError: it is no frozen dataclass that derives from `Strategy`, its name is not a plain
            one, or another strategy has that name.
    """
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ValueError(f"kind: expected a subclass of Strategy, got {kind!r}")
    shown = kind.__qualname__
    params = vars(kind).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise ValueError(f"kind: {shown} must be a dataclass(frozen=True, kw_only=True)")
    if "name" not in vars(kind) or not _NAME.fullmatch(kind.name):
        raise ValueError(f"kind: {shown}.name must be lower-case letters, digits, - or _")
    if STRATEGIES.setdefault(kind.name, kind) is not kind:
        taken = STRATEGIES[kind.name]
        raise ValueError(f"kind: the name {kind.name!r} is that of {taken.__qualname__}")
    return kind


def known_strategies() -> Mapping[str, type[Strategy]]:
    """All strategies by name, those of installed packages included."""
    _load_entry_points()
    return STRATEGIES


@cache
def _load_entry_points() -> None:
    """One that cannot be loaded is logged and left out: the others are none the worse for it."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            register_strategy(entry.load())
        except Exception:
            logging.getLogger(__name__).exception(
                "the strategy %s = %s cannot be used", entry.name, entry.value
            )


def make_strategy(name: str, options: Mapping[str, Any] | None = None) -> Strategy:
    """A strategy, or `tokens+layers` composed of two, with its knobs set from `options`.

    Raises:
        InvalidField: an unknown name (the known ones are listed), a composition whose sides do not
            prune what they should, or an unknown or wrong option.
    """
    names = name.split("+")
    strategies = known_strategies()
    for part in names:
        if part not in strategies:
            known = ", ".join(sorted(strategies))
            raise InvalidField(
                f"unknown strategy {part!r}; known: {known}, and tokens+layers", param=_FIELD
            )
    given = dict(options or {})
    built = [_build(strategies[part], given) for part in names]
    if given:
        raise InvalidField(
            f"strategy {name!r} has no option {min(given)!r}", param=f"budget.options.{min(given)}"
        )
    return built[0] if len(built) == 1 else _compose(name, built)


_FIELD = "budget.strategy"


@cache
def _validator(name: str) -> TypeAdapter[Strategy]:
    return TypeAdapter(STRATEGIES[name])


def _build(kind: type[Strategy], given: dict[str, Any]) -> Strategy:
    own = {key: given.pop(key) for key in list(given) if key in kind.__dataclass_fields__}
    try:
        return _validator(kind.name).validate_json(json.dumps(own), strict=True)
    except ValidationError as err:
        knob = str(err.errors()[0]["loc"][0])
        raise InvalidField(
            f"option {knob!r} of {kind.name}: {err.errors()[0]['msg']}",
            param=f"budget.options.{knob}",
        ) from err


def _compose(name: str, built: list[Strategy]) -> Strategy:
    if len(built) != 2 or not built[0].prunes_tokens or not built[1].prunes_layers:
        raise InvalidField(
            f"{name!r} must be a token strategy + a layer strategy, as in fastv+shortgpt",
            param=_FIELD,
        )
    return Composed(left=built[0], right=built[1])


__all__ = ["STRATEGIES", "Strategy", "known_strategies", "make_strategy", "register_strategy"]
