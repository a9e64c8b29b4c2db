"""PruMerge: the tokens that the class token looks at, each with what is like it merged in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from allrounder.core import ModelGeometry, PromptShape
from allrounder.pruning.greedy import cosine_flops, cosines
from allrounder.pruning.per_image import PerImage, vision_of
from allrounder.pruning.strategy import Choice, Context, View, keep_best, refuse


@dataclass(frozen=True, kw_only=True)
class PruMerge(PerImage):
    """LLaVA-PruMerge (arXiv 2403.15388, section 3), with the budget's count for its adaptive one.

    A kept token becomes itself plus the sum, weighted by attention, of the `neighbours` tokens
    whose keys are nearest by cosine. The last of the count, where it is above one, is the sum of
    all dropped tokens weighted by attention; it stands where the dropped token with most attention
    stood. Sums are not normalised, as in the released code. That reads its last layer as one wide
    head and merges before the projector; here it is the watched layer, mean over the heads, and
    projected tokens.

    Attributes:
        neighbours: published default 32.
    """

    name: ClassVar[str] = "prumerge"
    prunes_tokens: ClassVar[bool] = True
    needs_vision: ClassVar[bool] = True

    neighbours: int = 32

    @property
    def merges(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        if self.neighbours < 0:
            raise refuse("options.neighbours", "neighbours must be at least 0")

    def choose_image(self, view: View, count: int) -> Choice:
        vision = vision_of(view)
        attention_V = vision.attention_HV.float().mean(0)
        num_tokens = len(attention_V)
        num_extra = int(1 < count < num_tokens)
        rows = keep_best(attention_V, count)
        kept = keep_best(attention_V, count - num_extra)
        like_KV = cosines(vision.keys_VE[kept], vision.keys_VE)
        like_KV.scatter_(1, kept[:, None], float("-inf"))
        order_KV = like_KV.argsort(dim=-1, descending=True, stable=True)
        near_KN = order_KV[:, : min(self.neighbours, num_tokens - 1)]
        merged_KV = torch.zeros_like(like_KV).scatter_(1, near_KN, attention_V[near_KN])
        weights_KV = like_KV.new_zeros(count, num_tokens)
        weights_KV[torch.searchsorted(rows, kept)] = merged_KV.scatter_(1, kept[:, None], 1)
        if num_extra:
            weights_KV[~torch.isin(rows, kept)] = attention_V.index_fill(0, kept, 0)
        return Choice(rows=rows, weights=weights_KV)

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        vision = geometry.vision
        width = vision.key_width if vision else 0

        def flops(size: int, quota: int) -> int:
            return cosine_flops(quota, size, width)

        return self.over_images(shape, count, flops)
