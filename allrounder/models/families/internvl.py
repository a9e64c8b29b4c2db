"""InternVL3: tiles of one size at the closest aspect ratio, then the whole image as the last."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, TokenGrid
from allrounder.models.families.family import (
    ImageFeatures,
    PlainDecoder,
    expanded_layout,
    pictures,
    visual_tokens,
)
from allrounder.models.families.vision_tower import Tower, square_means, watched_layer


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
            tiles=((side * _patches_across(config)) ** 2,) * num_tiles,
        )

    def tower(self, model: PreTrainedModel) -> Tower:
        vision: Any = model.get_submodule("model.vision_tower")
        layers = vision.encoder.layer
        return Tower(
            attention=layers[watched_layer(len(layers))].attention,
            projector=model.get_submodule("model.multi_modal_projector"),
            has_class=True,
            feature_width=vision.config.hidden_size,
            merged=_patches_across(model.config) ** 2,
        )

    def encode(
        self,
        model: PreTrainedModel,
        processor: Any,
        images: Sequence[ImageInput],
        *,
        with_facts: bool = False,
    ) -> list[ImageFeatures]:
        tiles = processor.image_processor(
            images=pictures(images), return_tensors="pt", **processor.images_kwargs
        )
        with torch.inference_mode(), self.watched(model, with_facts=with_facts) as seen:
            features = model.get_image_features(
                pixel_values=tiles["pixel_values"].to(device=model.device, dtype=model.dtype),
                return_dict=True,
            )
        per_image = features.pooler_output.split(tiles["num_patches"].tolist())
        facts = None
        if seen is not None:
            (columns_NPC,) = seen.columns()
            means_NGC = square_means(columns_NPC, _patches_across(model.config))
            rows_NGC = torch.cat([means_NGC, seen.features], dim=-1)
            counts = tiles["num_patches"].tolist()
            facts = [seen.facts(rows.flatten(0, 1)) for rows in rows_NGC.split(counts)]
        return visual_tokens([tokens_NSD.flatten(0, 1) for tokens_NSD in per_image], facts)


def _patches_across(config: Any) -> int:
    """Patches along one side of what becomes one token."""
    downsample_ratio: float = config.downsample_ratio
    return round(1 / downsample_ratio)
