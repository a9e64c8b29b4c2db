"""LLaVA-1.5: a CLIP tower of fixed resolution, an MLP projector, a Llama-like decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from allrounder.core import ImageInput, ImageLayout, TokenGrid
from allrounder.errors import InvalidImage
from allrounder.models.families.family import (
    ImageFeatures,
    PlainDecoder,
    clip_like_tower,
    pictures,
    visual_tokens,
)
from allrounder.models.families.vision_tower import Tower

_MAX_ASPECT = 200


class Llava(PlainDecoder):
    """transformers' `LlavaForConditionalGeneration` (arXiv 2310.03744)."""

    name = "llava"

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        _check_aspect(processor.image_processor, width, height)
        side = config.vision_config.image_size // config.vision_config.patch_size
        full = config.vision_feature_select_strategy == "full"
        num_class = processor.num_additional_image_tokens if full else 0
        return ImageLayout(
            grid=TokenGrid(
                rows=side,
                cols=side,
                offset=num_class,
                area=_seen(processor.image_processor, width, height),
            ),
            placeholder=processor.image_token,
            runs=(side * side + num_class,),
            tiles=(side * side,),
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
        pixels = processor.image_processor(images=pictures(images), return_tensors="pt")
        with torch.inference_mode(), self.watched(model, with_facts=with_facts) as seen:
            features = model.get_image_features(
                pixel_values=pixels["pixel_values"].to(device=model.device, dtype=model.dtype),
                vision_feature_layer=model.config.vision_feature_layer,
                vision_feature_select_strategy=model.config.vision_feature_select_strategy,
                return_dict=True,
            )
        facts = None
        if seen is not None:
            full = model.config.vision_feature_select_strategy == "full"
            (columns_NPC,) = seen.columns(with_class=full)
            rows_NPC = torch.cat([columns_NPC, seen.features], dim=-1)
            facts = [seen.facts(rows_PC) for rows_PC in rows_NPC]
        return visual_tokens(features.pooler_output, facts)


def _seen(image_processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """What is left of the image after scaling it and cropping around its centre."""
    if not image_processor.do_center_crop:
        return (0.0, 0.0, 1.0, 1.0)
    size = image_processor.size
    if image_processor.do_resize and (edge := size.get("shortest_edge")):
        short = min(width, height)
        width, height = round(width * edge / short), round(height * edge / short)
    elif image_processor.do_resize:
        width, height = size["width"], size["height"]
    across = image_processor.crop_size["width"] / width
    down = image_processor.crop_size["height"] / height
    return ((1 - across) / 2, (1 - down) / 2, across, down)


def _check_aspect(image_processor: Any, width: int, height: int) -> None:
    """CLIP's processor scales the short side up before it crops: a thread would fill the memory."""
    stretched = image_processor.do_resize and image_processor.size.get("shortest_edge")
    if stretched and max(width, height) > _MAX_ASPECT * min(width, height):
        raise InvalidImage(
            f"the image is {width} x {height}; one side may be {_MAX_ASPECT} times the other",
            param="image",
        )
