"""FastV: drop what the last prompt token does not look at in an early layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from allrounder.core import ModelGeometry
from allrounder.pruning.strategy import Context, Probe, Strategy, View, keep_best, refuse


@dataclass(frozen=True, kw_only=True)
class FastV(Strategy):
    """FastV (arXiv 2403.06764, section 4): rank by layer K-1's attention, drop before layer K.

    Attributes:
        layer: K; all visual tokens run through layers 0..K-1. Published default 2.
    """

    name: ClassVar[str] = "fastv"
    prunes_tokens: ClassVar[bool] = True

    layer: int = 2

    def selection_layer(self) -> int:
        return self.layer

    def probes(self, geometry: ModelGeometry) -> tuple[Probe, ...]:
        return (Probe(layer_idx=self.layer - 1, rows="last"),)

    def check(self, context: Context) -> None:
        last = context.geometry.num_layers - 1
        if not 1 <= self.layer <= last:
            raise refuse("options.layer", f"layer must be from 1 to {last}, got {self.layer}")

    def select(self, view: View, count: int) -> Tensor:
        scores_V = view.attention[self.layer - 1].float().mean(dim=(0, 1))
        return keep_best(scores_V, count)
