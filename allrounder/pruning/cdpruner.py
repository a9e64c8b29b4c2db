"""CDPruner: diverse among those visual tokens that the question is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from allrounder.core import ModelGeometry, PromptShape
from allrounder.pruning.greedy import cosine_flops, cosines, most_volume, volume_flops
from allrounder.pruning.per_image import PerImage
from allrounder.pruning.strategy import Choice, Context, View, refuse


@dataclass(frozen=True, kw_only=True)
class CDPruner(PerImage):
    """CDPruner (arXiv 2506.10967, section 3): greedy MAP of a conditional determinantal process.

    The kernel is r_i S_ij r_j with S the cosine of projected tokens. The paper reads relevance from
    CLIP's text tower, which LVLMs do not load; as in OpenVINO GenAI's variant it is the mean cosine
    of a projected token with the word embeddings of the question, min-max normalised within the
    image, and enters as r = exp(a relevance) with a = w / (2 (1 - w)).

    Attributes:
        relevance_weight: w, the paper's theta, in [0, 1): 0 is diversity alone. OpenVINO's
            default 0.5.
        negative: the least similar tokens are the relevant ones, as the released code has it for
            CLIP; word embeddings need it not.
    """

    name: ClassVar[str] = "cdpruner"
    prunes_tokens: ClassVar[bool] = True

    relevance_weight: float = 0.5
    negative: bool = False

    def check(self, context: Context) -> None:
        if not 0 <= self.relevance_weight < 1:
            raise refuse(
                "options.relevance_weight",
                f"relevance_weight must be from 0 to below 1, got {self.relevance_weight:g}",
            )

    def choose_image(self, view: View, count: int) -> Choice:
        relevance_V = self._relevance(cosines(view.question_QD, view.visual_VD).mean(0))
        strength = self.relevance_weight / (2 * (1 - self.relevance_weight))
        similar_VV = cosines(view.visual_VD, view.visual_VD).fill_diagonal_(1)
        picks = most_volume(similar_VV, strength * relevance_V, count)
        return Choice(rows=picks.sort().values)

    def _relevance(self, similarity_V: Tensor) -> Tensor:
        signed_V = -similarity_V if self.negative else similarity_V
        low, high = signed_V.amin(), signed_V.amax()
        return (signed_V - low) / (high - low).clamp(min=1e-12)

    def choice_flops(self, geometry: ModelGeometry, shape: PromptShape, count: int) -> int:
        def flops(size: int, quota: int) -> int:
            similar = cosine_flops(size + shape.num_read, size, geometry.width)
            return similar + volume_flops(size, quota)

        return self.over_images(shape, count, flops)
