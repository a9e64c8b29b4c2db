"""VisionZip: the tokens that the vision tower looks at, and a merged summary of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from allrounder.core import ModelGeometry, PromptShape
from allrounder.pruning.greedy import cosine_flops, cosines
from allrounder.pruning.per_image import PerImage, vision_of
from allrounder.pruning.strategy import Choice, Context, View, keep_best, refuse


@dataclass(frozen=True, kw_only=True)
class VisionZip(PerImage):
    """VisionZip (arXiv 2412.04467, section 3): dominant tokens, and contextual ones by merging.

    Dominant are those with the most attention of the class token, summed over the heads. Of the
    others every n-th is a target; each further one joins the target whose key (mean over the heads)
    is nearest by cosine, and a target becomes itself plus the mean of those that joined. The paper
    merges before the projector and keeps the class token; here projected tokens are merged, and a
    class token is kept only where the model has it among them.

    Attributes:
        contextual_ratio: share of the count that is contextual. Published 10 of 64.
    """

    name: ClassVar[str] = "visionzip"
    prunes_tokens: ClassVar[bool] = True
    needs_vision: ClassVar[bool] = True

    contextual_ratio: float = 10 / 64

    @property
    def merges(self) -> bool:
        return True

    def check(self, context: Context) -> None:
        if not 0 <= self.contextual_ratio < 1:
            raise refuse(
                "options.contextual_ratio",
                f"contextual_ratio must be from 0 to below 1, got {self.contextual_ratio:g}",
            )

    def choose_image(self, view: View, count: int) -> Choice:
        vision = vision_of(view)
        num_contextual = self._num_contextual(count)
        dominant = keep_best(vision.attention_HV.float().sum(0), count - num_contextual)
        targets, others = _split_rest(len(view.visual_VD), dominant, num_contextual)
        rows = torch.cat([dominant, targets]).sort().values
        weights_KV = vision.attention_HV.new_zeros(count, len(view.visual_VD))
        weights_KV.scatter_(1, rows[:, None], 1)
        if num_contextual:
            keys = vision.head_keys
            joins = cosines(keys[others], keys[targets]).argmax(-1)
            sizes = joins.bincount(minlength=num_contextual)
            weights_KV[torch.searchsorted(rows, targets[joins]), others] = 1 / sizes[joins].float()
        return Choice(rows=rows, weights=weights_KV)

    def _num_contextual(self, count: int) -> int:
        return int(count * self.contextual_ratio)

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        vision = geometry.vision
        width = vision.key_width // vision.num_heads if vision else 0

        def flops(size: int, quota: int) -> int:
            return cosine_flops(size, self._num_contextual(quota), width)

        return self.over_images(shape, count, flops)


def _split_rest(num_tokens: int, dominant: Tensor, num_targets: int) -> tuple[Tensor, Tensor]:
    """The tokens that are not dominant: evenly spaced targets, and the others."""
    is_rest_V = torch.ones(num_tokens, dtype=torch.bool, device=dominant.device)
    is_rest_V[dominant] = False
    rest = is_rest_V.nonzero()[:, 0]
    is_target = torch.zeros_like(rest, dtype=torch.bool)
    if num_targets:
        step = len(rest) // num_targets
        is_target[: num_targets * step : step] = True
    return rest[is_target], rest[~is_target]
