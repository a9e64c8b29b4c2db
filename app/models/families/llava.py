"""LLaVA-1.5: a CLIP tower of fixed resolution, an MLP projector, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from app.core import ImageInput, ImageLayout, Prompt, TokenGrid
from app.models.families.base import (
    DecoderParts,
    PromptPositions,
    VisualTokens,
    sequential_positions,
)


class Llava:
    """transformers' `LlavaForConditionalGeneration` (arXiv 2310.03744)."""

    name = "llava"

    def parts(self, model: PreTrainedModel) -> DecoderParts:
        decoder: Any = model.model.language_model
        return DecoderParts(
            config=decoder.config,
            embed=decoder.embed_tokens,
            layers=list(decoder.layers),
            rotary=decoder.rotary_emb,
            norm=decoder.norm,
            head=model.lm_head,
        )

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        return frozenset()

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        side = config.vision_config.image_size // config.vision_config.patch_size
        num_class = int(config.vision_feature_select_strategy == "full")
        return ImageLayout(
            grid=TokenGrid(rows=side, cols=side, offset=num_class),
            placeholder=processor.image_token,
            runs=(side * side + num_class,),
        )

    def encode(
        self, model: PreTrainedModel, processor: Any, images: Sequence[ImageInput]
    ) -> list[VisualTokens]:
        pictures = [Image.frombytes("RGB", (i.width, i.height), i.rgb) for i in images]
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            features = model.get_image_features(
                pixel_values=pixels.to(device=model.device, dtype=model.dtype),
                vision_feature_layer=model.config.vision_feature_layer,
                vision_feature_select_strategy=model.config.vision_feature_select_strategy,
                return_dict=True,
            )
        return [VisualTokens(tokens_VD=tokens_VD) for tokens_VD in features.pooler_output]

    def positions(
        self, model: PreTrainedModel, prompt: Prompt, layouts: Sequence[ImageLayout]
    ) -> PromptPositions:
        return sequential_positions(prompt)
