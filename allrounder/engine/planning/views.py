"""What a strategy may know of a request's images, from what the adapter says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from allrounder.core import ImageLayout
from allrounder.models.families.family import ImageFeatures
from allrounder.pruning.strategy import View
from allrounder.pruning.vision_facts import VisionFeatures


def with_images(view: View, visual: ImageFeatures, layouts: Sequence[ImageLayout]) -> View:
    """`view` with the images' sizes and grids and, where they were encoded with facts, those."""
    facts, vision = visual.facts, None
    tower = view.context.geometry.vision
    has_class = tower is not None and tower.has_class
    if facts is not None:
        vision = VisionFeatures(
            attention_HV=facts.attention_HV,
            keys_VE=facts.keys_VE,
            features_VF=facts.features_VF,
        )
    return replace(
        view,
        visual_per_image=tuple(layout.num_visual for layout in layouts),
        grids=tuple(layout.grid for layout in layouts),
        vision=vision,
        cls_attention_V=vision.attention_HV.mean(0) if vision and has_class else None,
    )
