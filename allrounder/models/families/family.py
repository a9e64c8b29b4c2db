"""What differs between LVLM families, and nothing else.

Shapes: V visual tokens of one image, T prompt rows, P position axes, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, Prompt
from allrounder.models.families.vision_tower import Tower, VisionFacts


@dataclass(frozen=True, kw_only=True)
class DecoderParts:
    """The decoder's own modules, run one by one by the engine's loop."""

    config: Any
    embed: nn.Module
    layers: Sequence[nn.Module]
    rotary: nn.Module
    norm: nn.Module
    head: nn.Module


@dataclass(frozen=True, kw_only=True)
class PromptPositions:
    """Rotary positions of the unpruned prompt's rows (P x T) and of the first generated token."""

    rows_PT: Tensor
    next: int


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """One image, or one request's images in order, as the decoder takes them: never pruned.

    Attributes:
        tokens_VD: rows at the visual slots.
        planes: V x D each; plane i is added to the visual rows behind decoder layer i.
        facts: what the vision tower showed of each token, where it was asked for.
    """

    tokens_VD: Tensor
    planes: tuple[Tensor, ...] = ()
    facts: VisionFacts | None = None

    def selected(self, rows_K: Tensor, weights_KV: Tensor | None = None) -> ImageFeatures:
        """The tokens `rows_K`, or weighted sums of all; planes alike."""

        def of(tensor_VD: Tensor) -> Tensor:
            return tensor_VD[rows_K] if weights_KV is None else merged(weights_KV, tensor_VD)

        return ImageFeatures(
            tokens_VD=of(self.tokens_VD), planes=tuple(of(plane) for plane in self.planes)
        )

    @property
    def nbytes(self) -> int:
        facts = self.facts.nbytes if self.facts else 0
        return self.tokens_VD.nbytes + sum(plane.nbytes for plane in self.planes) + facts

    def own(self) -> ImageFeatures:
        """The same in memory of its own, where these are views of a whole batch."""
        return replace(
            self,
            tokens_VD=_own(self.tokens_VD),
            planes=tuple(_own(plane) for plane in self.planes),
        )

    @classmethod
    def joined(cls, images: Sequence[ImageFeatures]) -> ImageFeatures:
        if len(images) == 1:
            return images[0]
        planes = zip(*(image.planes for image in images), strict=True)
        facts = [image.facts for image in images if image.facts is not None]
        return cls(
            tokens_VD=torch.cat([image.tokens_VD for image in images]),
            planes=tuple(torch.cat(plane) for plane in planes),
            facts=VisionFacts.joined(facts) if len(facts) == len(images) else None,
        )


def merged(weights_KC: Tensor, rows_CD: Tensor) -> Tensor:
    """K x D weighted sums of the rows, added up in float32."""
    return (weights_KC.to(rows_CD.device).float() @ rows_CD.float()).to(rows_CD.dtype)


def _own(tensor: Tensor) -> Tensor:
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class Family(Protocol):
    """One LVLM family. All but the pure `layout` is called on the engine's thread.

    Attributes:
        max_images: images that one request may bring, where the family limits it.
        position_axes: of the rotary embedding; several where images have rows and columns.
    """

    name: str
    max_images: int | None
    position_axes: int

    def parts(self, model: PreTrainedModel) -> DecoderParts: ...

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        """Layers that no plan may skip (those that add visual features, for example)."""
        ...

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        """How an image of that size stands in the prompt; pure."""
        ...

    def tower(self, model: PreTrainedModel) -> Tower:
        """Where the vision tower is watched for those strategies that look at it."""
        ...

    def encode(
        self,
        model: PreTrainedModel,
        processor: Any,
        images: Sequence[ImageInput],
        *,
        with_facts: bool = False,
    ) -> list[ImageFeatures]:
        """Pixels to projected visual tokens, image by image, in one batch.

        With facts, the same tokens and what the watched layer showed.
        """
        ...

    def positions(
        self, model: PreTrainedModel, prompt: Prompt, layouts: Sequence[ImageLayout]
    ) -> PromptPositions: ...


def sequential_positions(prompt: Prompt) -> PromptPositions:
    """One axis, one position per row: every family without multi-axis rotary embedding."""
    num_rows = len(prompt.token_ids)
    return PromptPositions(rows_PT=torch.arange(num_rows)[None], next=num_rows)
