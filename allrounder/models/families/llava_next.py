"""LLaVA-NeXT: the whole image, then the tiles of the best fitting resolution, row ends marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from allrounder.core import ImageInput, ImageLayout, TokenGrid
from allrounder.models.families.family import (
    ImageFeatures,
    PlainDecoder,
    clip_like_tower,
    expanded_layout,
    pictures,
    visual_tokens,
)
from allrounder.models.families.vision_tower import Tower


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
            tiles=(side * side,) * _num_tiles(config, (height, width)),
        )

    def tower(self, model: PreTrainedModel) -> Tower:
        return clip_like_tower(model)

    def encode(
        self,
        model: PreTrainedModel,
        processor: Any,
        images: Sequence[ImageInput],
        *,
        with_facts: bool = False,
    ) -> list[ImageFeatures]:
        tiles = processor.image_processor(images=pictures(images), return_tensors="pt")
        with torch.inference_mode(), self.watched(model, with_facts=with_facts) as seen:
            features = model.get_image_features(
                pixel_values=tiles["pixel_values"].to(device=model.device, dtype=model.dtype),
                image_sizes=tiles["image_sizes"],
                return_dict=True,
            )
        facts = None
        if seen is not None:
            (columns_NPC,) = seen.columns()
            rows_NPC = torch.cat([columns_NPC, seen.features], dim=-1)
            counts = [
                _num_tiles(model.config, tuple(size)) for size in tiles["image_sizes"].tolist()
            ]
            packed = self._packed(model, rows_NPC.split(counts), tiles["image_sizes"])
            facts = [seen.facts(rows_VC) for rows_VC in packed]
        return visual_tokens(features.pooler_output, facts)

    def _packed(self, model: Any, rows: Sequence[Tensor], image_sizes: Tensor) -> Sequence[Tensor]:
        """What the model does to projected tiles, done to their columns; line ends are zero."""
        packed, _ = model.model.pack_image_features(
            rows,
            image_sizes,
            vision_feature_select_strategy=model.config.vision_feature_select_strategy,
            image_newline=rows[0].new_zeros(rows[0].shape[-1]),
        )
        columns: Sequence[Tensor] = packed
        return columns


def _num_tiles(config: Any, size: tuple[int, int]) -> int:
    """Of an image of (height, width) pixels, the whole image among them."""
    side = config.vision_config.image_size
    return int(image_size_to_num_patches(size, config.image_grid_pinpoints, side))
