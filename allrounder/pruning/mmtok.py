"""MMTok: the visual tokens that best cover the question's words and the picture itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from allrounder.core import ModelGeometry, PromptShape
from allrounder.pruning.greedy import cosine_flops, cosines, covering_flops, most_covering
from allrounder.pruning.per_image import PerImage, vision_of
from allrounder.pruning.strategy import Choice, Context, View, refuse


@dataclass(frozen=True, kw_only=True)
class MMTok(PerImage):
    """MMTok (arXiv 2508.18264, section 3): greedy maximum coverage of two modalities.

    P is, for each of m words of the question, the softmax over the visual tokens of the cosine of
    its embedding and the projected token; Q, for each of n tokens, that of patch features before
    the projector. What is maximised is the sum over the rows of [P/m; alpha Q/n] of the best
    cover by a kept token. The words are the text behind the last image, the assistant's tag among
    them.

    Attributes:
        text_temperature: of P. Published default 0.02.
        vision_temperature: of Q. Published default 0.2.
        alpha: weight of Q. Published default 0.5.
    """

    name: ClassVar[str] = "mmtok"
    prunes_tokens: ClassVar[bool] = True
    needs_vision: ClassVar[bool] = True

    text_temperature: float = 0.02
    vision_temperature: float = 0.2
    alpha: float = 0.5

    def check(self, context: Context) -> None:
        for knob in ("text_temperature", "vision_temperature"):
            if not getattr(self, knob) > 0:
                raise refuse(f"options.{knob}", f"{knob} must be above 0")
        if not self.alpha >= 0:
            raise refuse("options.alpha", "alpha must be at least 0")

    def choose_image(self, view: View, count: int) -> Choice:
        features_VF = vision_of(view).features_VF
        words_QV = cosines(view.question_QD, view.visual_VD) / self.text_temperature
        patches_VV = cosines(features_VF, features_VF) / self.vision_temperature
        cover_RV = torch.cat(
            [
                words_QV.softmax(-1) / len(words_QV),
                self.alpha * patches_VV.softmax(-1) / len(patches_VV),
            ]
        )
        return Choice(rows=most_covering(cover_RV, count).sort().values)

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        vision = geometry.vision
        words = shape.num_read

        def flops(size: int, quota: int) -> int:
            patches = cosine_flops(size, size, vision.feature_width if vision else 0)
            covering = covering_flops(words + size, size, quota)
            return cosine_flops(words, size, geometry.width) + patches + covering

        return self.over_images(shape, count, flops)
