"""DivPrune: the most diverse subset of visual tokens, whatever is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from allrounder.core import ModelGeometry, PromptShape
from allrounder.pruning.greedy import cosine_flops, cosines, farthest_flops, farthest_points
from allrounder.pruning.per_image import PerImage
from allrounder.pruning.strategy import Choice, View


@dataclass(frozen=True, kw_only=True)
class DivPrune(PerImage):
    """DivPrune (arXiv 2503.02175, section 3): greedy max-min diversity.

    The distance of two projected tokens is 1 - cosine.
    """

    name: ClassVar[str] = "divprune"
    prunes_tokens: ClassVar[bool] = True

    def choose_image(self, view: View, count: int) -> Choice:
        distance_VV = 1 - cosines(view.visual_VD, view.visual_VD)
        return Choice(rows=farthest_points(distance_VV, count).sort().values)

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        def flops(size: int, quota: int) -> int:
            return cosine_flops(size, size, geometry.width) + farthest_flops(size, quota)

        return self.over_images(shape, count, flops)
