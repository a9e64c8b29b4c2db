"""Pruning All-Rounder: one meta-router ranks visual tokens and layers together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from allrounder.pruning.strategy import Context, RouterScores, Strategy, View, keep_best, refuse


@dataclass(frozen=True, kw_only=True)
class Par(Strategy):
    """PAR (seed paper, section 4): keep the best M tokens, skip the worst K candidate layers."""

    name: ClassVar[str] = "par"
    prunes_tokens: ClassVar[bool] = True
    prunes_layers: ClassVar[bool] = True
    needs_router: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True

    def check(self, context: Context) -> None:
        if context.router_candidates is None:
            raise refuse("strategy", f"{self.name} needs a router; this model has none")

    def candidates(self, context: Context) -> tuple[int, ...]:
        return context.router_candidates or ()

    def select(self, view: View, count: int) -> Tensor:
        return keep_best(_scores(view).token_logits, count)

    def skip(self, view: View, allowed: tuple[int, ...], count: int) -> tuple[int, ...]:
        logits = _scores(view).layer_logits.tolist()
        of_layer = dict(zip(self.candidates(view.context), logits, strict=True))
        return tuple(sorted(sorted(allowed, key=lambda idx: (of_layer[idx], idx))[:count]))


@dataclass(frozen=True, kw_only=True)
class ParToken(Par):
    """The joint router's token branch alone (`joint-then-token`)."""

    name: ClassVar[str] = "par-token"
    prunes_layers: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class ParLayer(Par):
    """The joint router's layer branch alone (`joint-then-layer`)."""

    name: ClassVar[str] = "par-layer"
    prunes_tokens: ClassVar[bool] = False


def _scores(view: View) -> RouterScores:
    assert view.router is not None, "the runner scores the request before a router strategy runs"
    return view.router
