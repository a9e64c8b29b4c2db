"""What several families do alike: find a plain decoder, hand over pictures, read placeholders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from app.core import ImageInput, ImageLayout, Prompt, TokenGrid
from app.models.families.base import DecoderParts, PromptPositions, sequential_positions


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

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        return frozenset()

    def positions(
        self, model: PreTrainedModel, prompt: Prompt, layouts: Sequence[ImageLayout]
    ) -> PromptPositions:
        return sequential_positions(prompt)


def pictures(images: Sequence[ImageInput]) -> list[Image.Image]:
    """As a processor takes them. Only PIL tells it that a 3 x N image has its channels last."""
    return [Image.frombytes("RGB", (i.width, i.height), i.rgb) for i in images]


def expanded_layout(expanded: str, image_token: str, grid: TokenGrid) -> ImageLayout:
    """From the text that the library's processor puts in the place of one image."""
    runs = re.compile(f"(?:{re.escape(image_token)})+")
    return ImageLayout(
        grid=grid,
        placeholder=runs.sub(lambda _: image_token, expanded),
        runs=tuple(len(run) // len(image_token) for run in runs.findall(expanded)),
    )
