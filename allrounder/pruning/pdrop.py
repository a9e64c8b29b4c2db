"""PyramidDrop: visual tokens leave in stages, each ranked by the layer that is about to run.

Shapes: H heads, C visual tokens that arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from allrounder.core import ModelGeometry
from allrounder.pruning.strategy import (
    Context,
    Points,
    Probe,
    Strategy,
    View,
    check_renumber,
    keep_best,
    refuse,
)

_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Strategy):
    """PyramidDrop (arXiv 2410.17247, section 3): each stage keeps the same share of its tokens.

    Before a stage's layer its own norm and projections give the attention of the last instruction
    token, mean over the heads. Where c of V tokens shall survive S stages the share is
    (c/V)^(1/S): the published 288, 144 and 72 of 576 before layers 8, 16 and 24 of 32 for c = 72.

    Attributes:
        stages: selection points, evenly spaced over the depth. Published default 3.
        renumber: number the surviving rows consecutively, as the published code does.
    """

    name: ClassVar[str] = "pdrop"
    prunes_tokens: ClassVar[bool] = True

    stages: int = 3
    renumber: bool = False

    def check(self, context: Context) -> None:
        most = context.geometry.num_layers - 1
        if not 1 <= self.stages <= most:
            raise refuse("options.stages", f"stages must be from 1 to {most}, got {self.stages}")
        check_renumber(self, context)

    @property
    def renumbers(self) -> bool:
        return self.renumber

    def schedule(self, geometry: ModelGeometry, num_visual: int, count: int) -> Points:
        """Published counts are truncated; the last one is `count`."""
        ratio = (count / num_visual) ** (1 / self.stages)
        counts = [int(num_visual * ratio**stage + _ROUNDING) for stage in range(1, self.stages)]
        return tuple(zip(self._layers(geometry), [*counts, count], strict=True))

    def probes(self, geometry: ModelGeometry) -> tuple[Probe, ...]:
        return tuple(
            Probe(layer_idx=layer_idx, rows="last", ahead=True)
            for layer_idx in self._layers(geometry)
        )

    def select(self, view: View, count: int) -> Tensor:
        scores_C = view.attention[view.layer_idx].float().mean(dim=(0, 1))
        return view.arriving[keep_best(scores_C, count)]

    def _layers(self, geometry: ModelGeometry) -> tuple[int, ...]:
        depth = geometry.num_layers
        return tuple(depth * stage // (self.stages + 1) for stage in range(1, self.stages + 1))
