"""What differs between LVLM families, and nothing else.

Shapes: V visual tokens of one image, T prompt rows, P position axes, D decoder width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, Prompt, TokenGrid
from allrounder.models.families.vision_tower import Seen, Tower, VisionFacts, watched, watched_layer


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


class PlainDecoder:
    """One position axis, and nothing added between the decoder's layers."""

    max_images: int | None = None
    position_axes: int = 1

    def parts(self, model: PreTrainedModel) -> DecoderParts:
        decoder: Any = model.get_decoder()
        return DecoderParts(
            config=decoder.config,
            embed=decoder.get_input_embeddings(),
            layers=list(decoder.layers),
            rotary=decoder.rotary_emb,
            norm=decoder.norm,
            head=model.get_output_embeddings(),
        )

    def tower(self, model: PreTrainedModel) -> Tower:
        raise NotImplementedError

    def watched(
        self, model: PreTrainedModel, *, with_facts: bool
    ) -> AbstractContextManager[Seen | None]:
        return watched(self.tower(model)) if with_facts else nullcontext()

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        return frozenset()

    def positions(
        self, model: PreTrainedModel, prompt: Prompt, layouts: Sequence[ImageLayout]
    ) -> PromptPositions:
        return sequential_positions(prompt)


def pictures(images: Sequence[ImageInput]) -> list[Image.Image]:
    """As a processor takes them. Only PIL tells it that a 3 x N image has its channels last."""
    return [Image.frombytes("RGB", (i.width, i.height), i.rgb) for i in images]


def resized(image: ImageInput, *, width: int, height: int) -> ImageInput:
    """Bicubic, as the towers' own processors scale."""
    if (width, height) == (image.width, image.height):
        return image
    (picture,) = pictures([image])
    rgb = picture.resize((width, height), Image.Resampling.BICUBIC).tobytes()
    digest = hashlib.sha256(f"{image.digest} {width} {height}".encode()).hexdigest()
    return ImageInput(width=width, height=height, rgb=rgb, digest=digest)


def clip_like_tower(model: PreTrainedModel) -> Tower:
    """CLIP with a class token, or SigLIP without, as LLaVA's kin hold them."""
    vision: Any = model.get_submodule("model.vision_tower")
    layers = vision.encoder.layers
    selected = model.config.vision_feature_layer
    num_selected = 1 if isinstance(selected, int) else len(selected)
    return Tower(
        attention=layers[watched_layer(len(layers))].self_attn,
        projector=model.get_submodule("model.multi_modal_projector"),
        has_class=hasattr(vision.embeddings, "class_embedding"),
        feature_width=vision.config.hidden_size * num_selected,
    )


def visual_tokens(
    tokens: Sequence[Tensor], facts: Sequence[VisionFacts] | None
) -> list[ImageFeatures]:
    """Image by image, with facts where there are any."""
    each = facts if facts is not None else [None] * len(tokens)
    return [ImageFeatures(tokens_VD=t, facts=f) for t, f in zip(tokens, each, strict=True)]


def expanded_layout(
    expanded: str, image_token: str, grid: TokenGrid, tiles: tuple[int, ...]
) -> ImageLayout:
    """From the text that the library's processor puts in the place of one image."""
    runs = re.compile(f"(?:{re.escape(image_token)})+")
    return ImageLayout(
        grid=grid,
        placeholder=runs.sub(lambda _: image_token, expanded),
        runs=tuple(len(run) // len(image_token) for run in runs.findall(expanded)),
        tiles=tiles,
    )
