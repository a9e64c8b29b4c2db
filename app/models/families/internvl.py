"""InternVL3: tiles of one size at the closest aspect ratio, then the whole image as the last."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedModel

from app.core import ImageInput, ImageLayout, TokenGrid
from app.models.families.base import VisualTokens
from app.models.families.common import PlainDecoder, expanded_layout, pictures


class InternVL(PlainDecoder):
    """transformers' `InternVLForConditionalGeneration` (arXiv 2504.10479)."""

    name = "internvl"

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        num_tiles = processor.image_processor.get_number_of_image_patches(
            height, width, processor.images_kwargs
        )
        side = isqrt(processor.image_seq_length)
        return expanded_layout(
            processor.replace_image_token({"num_patches": [num_tiles]}, 0),
            processor.image_token,
            TokenGrid(rows=side, cols=side, offset=(num_tiles - 1) * processor.image_seq_length),
        )

    def encode(
        self, model: PreTrainedModel, processor: Any, images: Sequence[ImageInput]
    ) -> list[VisualTokens]:
        tiles = processor.image_processor(
            images=pictures(images), return_tensors="pt", **processor.images_kwargs
        )
        with torch.inference_mode():
            features = model.get_image_features(
                pixel_values=tiles["pixel_values"].to(device=model.device, dtype=model.dtype),
                return_dict=True,
            )
        per_image = features.pooler_output.split(tiles["num_patches"].tolist())
        return [VisualTokens(tokens_VD=tokens_NSD.flatten(0, 1)) for tokens_NSD in per_image]
