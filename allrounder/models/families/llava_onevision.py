"""LLaVA-OneVision: LLaVA-NeXT's tiles over SigLIP, pooled where they would be too many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allrounder.models.families.llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """transformers' `LlavaOnevisionForConditionalGeneration` (arXiv 2408.03326).

    Beside other images an image is one padded square without tiles: its tokens are then not its
    own affair, so a request may bring one.
    """

    name = "llava_onevision"
    max_images: int | None = 1

    def _packed(self, model: Any, rows: Sequence[Tensor], image_sizes: Tensor) -> Sequence[Tensor]:
        packed, _ = model.model.pack_image_features(
            rows,
            image_sizes,
            image_newline=rows[0].new_zeros(rows[0].shape[-1]),
            vision_aspect_ratio=model.config.vision_aspect_ratio,
        )
        columns: Sequence[Tensor] = packed
        return columns
