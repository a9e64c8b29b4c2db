"""What several families do alike: find a plain decoder, hand over pictures, read placeholders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, Prompt, TokenGrid
from allrounder.models.families.family import (
    DecoderParts,
    ImageFeatures,
    PromptPositions,
    sequential_positions,
)
from allrounder.models.families.vision_tower import Seen, Tower, VisionFacts, watched, watched_layer


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
