"""Qwen2-VL and Qwen2.5-VL: images at their own resolution, rotary positions over three axes.

Shapes: V visual tokens of one image, T prompt rows, P position axes, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.vision_utils import get_vision_window_index

from allrounder.core import ImageInput, ImageLayout, Prompt, TokenGrid
from allrounder.errors import InvalidImage
from allrounder.models.families.family import (
    ImageFeatures,
    PlainDecoder,
    PromptPositions,
    pictures,
    visual_tokens,
)
from allrounder.models.families.vision_tower import Seen, Tower, VisionFacts, watched_layer


class Qwen2Vl(PlainDecoder):
    """transformers' `Qwen2VLForConditionalGeneration` (arXiv 2409.12191)."""

    name = "qwen2_vl"
    position_axes: int = 3

    def layout(self, config: Any, processor: Any, *, width: int, height: int) -> ImageLayout:
        """The grid behind the patch merger. Raises InvalidImage for a strip too long to resize."""
        images = processor.image_processor
        side = images.patch_size * images.merge_size
        try:
            resized_height, resized_width = smart_resize(
                height,
                width,
                factor=side,
                min_pixels=images.size["shortest_edge"],
                max_pixels=images.size["longest_edge"],
            )
        except ValueError as err:
            raise InvalidImage(
                f"an image of {width} x {height} pixels is too narrow for this model", param="image"
            ) from err
        rows, cols = resized_height // side, resized_width // side
        return ImageLayout(
            grid=TokenGrid(rows=rows, cols=cols),
            placeholder=processor.image_token,
            runs=(rows * cols,),
            tiles=(rows * cols * images.merge_size**2,),
        )

    def tower(self, model: PreTrainedModel) -> Tower:
        vision: Any = model.get_submodule("model.visual")
        full = getattr(vision, "fullatt_block_indexes", None)
        watched_idx = watched_layer(len(vision.blocks), among=full)
        attention: Any = vision.blocks[watched_idx].attn
        return Tower(
            attention=attention,
            projector=vision.merger,
            has_class=False,
            feature_width=attention.dim,
        )

    def encode(
        self,
        model: PreTrainedModel,
        processor: Any,
        images: Sequence[ImageInput],
        *,
        with_facts: bool = False,
    ) -> list[ImageFeatures]:
        inputs = processor.image_processor(images=pictures(images), return_tensors="pt")
        with torch.inference_mode(), self.watched(model, with_facts=with_facts) as seen:
            features = model.get_image_features(
                pixel_values=inputs["pixel_values"].to(device=model.device, dtype=model.dtype),
                image_grid_thw=inputs["image_grid_thw"].to(model.device),
                return_dict=True,
            )
        planes = self._planes(features)
        facts = None if seen is None else self._facts(model, seen, inputs["image_grid_thw"])
        return [
            replace(tokens, planes=tuple(plane[idx] for plane in planes))
            for idx, tokens in enumerate(visual_tokens(features.pooler_output, facts))
        ]

    def _facts(self, model: Any, seen: Seen, grid_thw: Tensor) -> list[VisionFacts]:
        """Patches come in the order in which they are merged, an image a call."""
        columns_PC = torch.cat([columns_1PC[0] for columns_1PC in seen.columns()])
        rows_PC = torch.cat([columns_PC, seen.features], dim=-1)
        merge = model.config.vision_config.spatial_merge_size**2
        rows_VC = self._in_order(model, rows_PC.unflatten(0, (-1, merge)).mean(1), grid_thw)
        return [seen.facts(rows) for rows in rows_VC.split((grid_thw.prod(-1) // merge).tolist())]

    def _in_order(self, model: Any, rows_VC: Tensor, grid_thw: Tensor) -> Tensor:
        """Merged rows as the tower works on them, in the order of the visual tokens."""
        return rows_VC

    def _planes(self, features: Any) -> Sequence[Sequence[Tensor]]:
        """Plane by plane, image by image: what is added behind the first decoder layers."""
        return ()

    def positions(
        self, model: PreTrainedModel, prompt: Prompt, layouts: Sequence[ImageLayout]
    ) -> PromptPositions:
        """Time, height and width of each row, as the model's own `get_rope_index` counts them."""
        num_rows = len(prompt.token_ids)
        is_image = torch.zeros(1, num_rows, dtype=torch.int)
        is_image[0, list(prompt.visual_rows)] = 1
        merge = model.config.vision_config.spatial_merge_size
        grids = [(1, lay.grid.rows * merge, lay.grid.cols * merge) for lay in layouts]
        rows_P1T, delta_11 = model.model.get_rope_index(
            input_ids=torch.tensor([prompt.token_ids]),
            mm_token_type_ids=is_image,
            image_grid_thw=torch.tensor(grids, dtype=torch.long).reshape(-1, 3),
        )
        return PromptPositions(rows_PT=rows_P1T[:, 0], next=num_rows + int(delta_11.item()))


class Qwen2_5Vl(Qwen2Vl):
    """transformers' `Qwen2_5_VLForConditionalGeneration` (arXiv 2502.13923): another tower."""

    name = "qwen2_5_vl"

    def _in_order(self, model: Any, rows_VC: Tensor, grid_thw: Tensor) -> Tensor:
        vision = model.get_submodule("model.visual")
        order_V, _ = get_vision_window_index(
            grid_thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        return rows_VC[torch.argsort(order_V).to(rows_VC.device)]
