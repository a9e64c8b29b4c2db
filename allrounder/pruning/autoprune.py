"""AutoPrune: a complex question keeps its visual tokens longer than a simple one.

Shapes: H heads, S text rows after the image, C visual tokens that arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from allrounder.core import ModelGeometry
from allrounder.pruning.retention import (
    PUBLISHED_LAYERS,
    cluster_weights,
    clustering_flops,
    mutual_information,
    num_kept,
    retention,
)
from allrounder.pruning.strategy import (
    Choice,
    Context,
    Points,
    Probe,
    Strategy,
    View,
    check_renumber,
    keep_best,
    refuse,
)

_FIRST, _SECOND = 1, 2


@dataclass(frozen=True, kw_only=True)
class AutoPrune(Strategy):
    """AutoPrune (arXiv 2509.23931, section 3, as released): tokens leave at every layer.

    The count B is a mean: tokens that leave a layer, over the layers. After layer 0 there are 2.5 B
    left. Mutual information of text and image at layer 1 sets the steepness of the curve on which
    the rest leave, ranked at each layer by the text after the image. As counted when admitted, a
    request costs what the steepest curve does.

    Attributes:
        x0: layer, of 32, around which tokens leave.
        k0: steepness without mutual information.
        gamma: how much of it a bit takes away.
        attention_weight: of layer 0's attention beside the vision encoder's class token.
        recycle: average the best dropped tokens into clusters, as published by default; here a
            cluster stands at its centre's place and not behind the tokens that are kept.
        renumber: number the surviving rows consecutively, as the published code does.
    """

    name: ClassVar[str] = "autoprune"
    prunes_tokens: ClassVar[bool] = True
    needs_vision: ClassVar[bool] = True

    x0: float = 14.9
    k0: float = 0.4
    gamma: float = 0.2
    attention_weight: float = 0.3
    recycle: bool = False
    renumber: bool = False

    def check(self, context: Context) -> None:
        for name, most in (("x0", PUBLISHED_LAYERS), ("k0", 10), ("gamma", 100)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise refuse(f"options.{name}", f"{name} must be from 0 to {most}, got {value:g}")
        if context.geometry.num_layers < 3:
            raise refuse("strategy", "autoprune needs a model of at least 3 layers")
        check_renumber(self, context)

    @property
    def adapts(self) -> bool:
        return True

    @property
    def merges(self) -> bool:
        return self.recycle

    @property
    def renumbers(self) -> bool:
        return self.renumber

    def merge_flops(
        self, geometry: ModelGeometry, *, layer_idx: int, arriving: int, count: int
    ) -> int:
        if not self.recycle or layer_idx == _FIRST or count >= arriving:
            return 0
        dropped = arriving - num_kept(arriving, count, recycle=True)
        weighing = 2 * count * arriving * geometry.width
        return weighing + clustering_flops(dropped, geometry.width)

    def schedule(self, geometry: ModelGeometry, num_visual: int, count: int) -> Points:
        """The steepest curve: it has the longest layers, so no other costs more."""
        return self._points(geometry, num_visual, count, self.k0)

    def probes(self, geometry: ModelGeometry) -> tuple[Probe, ...]:
        return tuple(
            Probe(layer_idx=layer_idx, rows="question")
            for layer_idx in range(geometry.num_layers - 1)
        )

    def reschedule(self, view: View, count: int, remaining: Points) -> Points:
        if view.layer_idx != _SECOND:
            return remaining
        bits = mutual_information(view.attention[_FIRST])
        steepness = max(self.k0 - self.gamma * bits, 0.0)
        points = self._points(view.context.geometry, len(view.visual_VD), count, steepness)
        return points[1:]

    def choose(self, view: View, count: int) -> Choice:
        attention_HSC = view.attention[view.layer_idx - 1]
        scores_C = attention_HSC.float().mean(dim=(0, 1))
        if view.layer_idx == _FIRST:
            first_C = self._with_class_token(view, attention_HSC, scores_C)
            return Choice(rows=view.arriving[keep_best(first_C, count)])
        kept = num_kept(len(scores_C), count, recycle=self.recycle)
        kept_K = keep_best(scores_C, kept)
        if kept == count:
            return Choice(rows=view.arriving[kept_K])
        places, weights = cluster_weights(view.hidden_CD, scores_C, kept_K, count - kept)
        return Choice(rows=view.arriving[places], weights=weights)

    def _with_class_token(self, view: View, attention_HSC: Tensor, scores_C: Tensor) -> Tensor:
        """Where the vision encoder has no class token, attention ranks alone."""
        if view.cls_attention_V is None:
            return scores_C
        bits = mutual_information(attention_HSC) / attention_HSC.shape[1]
        class_C = view.cls_attention_V.to(scores_C)[view.arriving]
        return class_C + self.attention_weight * bits * scores_C

    def _points(
        self, geometry: ModelGeometry, num_visual: int, count: int, steepness: float
    ) -> Points:
        leaving = retention(
            num_layers=geometry.num_layers,
            num_visual=num_visual,
            budget=count,
            steepness=steepness,
            centre=self.x0 * geometry.num_layers / PUBLISHED_LAYERS,
            recycle=self.recycle,
        )
        # A cluster may be one token too many where hardly any are asked for.
        entering = (*leaving[:-2], min(leaving[-2], count))
        return tuple(enumerate(entering, start=1))
