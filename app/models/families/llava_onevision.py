"""LLaVA-OneVision: LLaVA-NeXT's tiles over SigLIP, pooled where they would be too many."""

from __future__ import annotations

from app.models.families.llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """transformers' `LlavaOnevisionForConditionalGeneration` (arXiv 2408.03326).

    Beside other images an image is one padded square without tiles: its tokens are then not its
    own affair, so a request may bring one.
    """

    name = "llava_onevision"
    max_images: int | None = 1
