"""Idefics3 and SmolVLM: tiles set apart by text that names row and column, then the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, TokenGrid
from allrounder.errors import ModelUnsupported
from allrounder.models.families.family import (
    ImageFeatures,
    PlainDecoder,
    expanded_layout,
    pictures,
    visual_tokens,
)
from allrounder.models.families.vision_tower import Tower, square_means, watched_layer


class Idefics3(PlainDecoder):
    """transformers' `Idefics3ForConditionalGeneration` (arXiv 2408.12637) and, with another
    vision tower, `SmolVLMForConditionalGeneration` (arXiv 2504.05299)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        _check_sizes(processor.image_processor)
        _, rows, cols = processor.image_processor.get_number_of_image_patches(height, width)
        side = isqrt(processor.image_seq_len)
        return expanded_layout(
            processor.replace_image_token({"rows": [[rows]], "cols": [[cols]]}, 0),
            processor.image_token,
            TokenGrid(rows=side, cols=side, offset=rows * cols * processor.image_seq_len),
            tiles=(processor.image_seq_len * config.scale_factor**2,) * (rows * cols + 1),
        )

    def tower(self, model: PreTrainedModel) -> Tower:
        vision: Any = model.get_submodule("model.vision_model")
        layers = vision.encoder.layers
        return Tower(
            attention=layers[watched_layer(len(layers))].self_attn,
            projector=model.get_submodule("model.connector.modality_projection"),
            has_class=False,
            feature_width=vision.config.hidden_size,
            merged=model.config.scale_factor**2,
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
            images=[[picture] for picture in pictures(images)], return_tensors="pt"
        )
        with torch.inference_mode(), self.watched(model, with_facts=with_facts) as seen:
            features = model.get_image_features(
                pixel_values=tiles["pixel_values"].to(device=model.device, dtype=model.dtype),
                pixel_attention_mask=tiles["pixel_attention_mask"].to(model.device),
                return_dict=True,
            )
        facts = None
        if seen is not None:
            (columns_NPC,) = seen.columns()
            means_NGC = square_means(columns_NPC, model.config.scale_factor)
            rows_VC = torch.cat([means_NGC, seen.features], dim=-1).flatten(0, 1)
            counts = [len(tokens_VD) for tokens_VD in features.pooler_output]
            facts = [seen.facts(rows) for rows in rows_VC.split(counts)]
        return visual_tokens(features.pooler_output, facts)


def _check_sizes(image_processor: Any) -> None:
    """The library counts tiles as if the resized long side were whole tiles; else it miscounts."""
    whole = image_processor.size["longest_edge"]
    tile = image_processor.max_image_size["longest_edge"]
    counted = image_processor.do_resize and whole % tile == 0
    if image_processor.do_image_splitting and not counted:
        raise ModelUnsupported(f"longest edge {whole} is not a whole number of tiles of {tile}")
