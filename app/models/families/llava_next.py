"""LLaVA-NeXT: the whole image, then the tiles of the best fitting resolution, row ends marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from app.core import ImageInput, ImageLayout, TokenGrid
from app.models.families.base import VisualTokens
from app.models.families.common import PlainDecoder, expanded_layout, pictures


class LlavaNext(PlainDecoder):
    """transformers' `LlavaNextForConditionalGeneration` (LLaVA-1.6; tiling of arXiv 2310.03744)."""

    name = "llava_next"

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        vision = config.vision_config
        sizes = {
            "image_sizes": [(height, width)],
            "pixel_values": torch.empty(
                1, 1, 3, vision.image_size, vision.image_size, device="meta"
            ),
            "batch_num_images": [1],
        }
        side = vision.image_size // vision.patch_size
        return expanded_layout(
            processor.replace_image_token(sizes, 0),
            processor.image_token,
            TokenGrid(rows=side, cols=side),
        )

    def encode(
        self, model: PreTrainedModel, processor: Any, images: Sequence[ImageInput]
    ) -> list[VisualTokens]:
        tiles = processor.image_processor(images=pictures(images), return_tensors="pt")
        with torch.inference_mode():
            features = model.get_image_features(
                pixel_values=tiles["pixel_values"].to(device=model.device, dtype=model.dtype),
                image_sizes=tiles["image_sizes"],
                return_dict=True,
            )
        return [VisualTokens(tokens_VD=tokens_VD) for tokens_VD in features.pooler_output]
