"""Qwen3-VL: Qwen2-VL's layout, with DeepStack features behind the first decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from allrounder.models.families.qwen2_vl import Qwen2Vl


class Qwen3Vl(Qwen2Vl):
    """Dense Qwen3-VL (arXiv 2511.21631); DeepStack is arXiv 2406.04334."""

    name = "qwen3_vl"

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        """The layers that DeepStack features are added behind."""
        return frozenset(range(len(model.config.vision_config.deepstack_visual_indexes)))

    def _planes(self, features: Any) -> Sequence[Sequence[Tensor]]:
        planes: Sequence[Sequence[Tensor]] = features.deepstack_features
        return planes
