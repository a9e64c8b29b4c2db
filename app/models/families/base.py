"""What differs between LVLM families, and nothing else.

Shapes: V visual tokens of one image, T prompt rows, P position axes, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from app.core import ImageInput, Prompt, TokenGrid


@dataclass(frozen=True, kw_only=True)
class DecoderParts:
    """The decoder's own modules, run one by one by the engine's loop."""

    config: Any
    embed: nn.Module
    layers: Sequence[nn.Module]
    rotary: nn.Module
    norm: nn.Module
    head: nn.Module


@dataclass(frozen=True, kw_only=True)
class PromptPositions:
    """Rotary positions of the unpruned prompt's rows (P x T) and of the first generated token."""

    rows_PT: Tensor
    next: int


class Family(Protocol):
    """One LVLM family. All methods are called on the engine's thread but the two pure ones."""

    name: str

    def parts(self, model: PreTrainedModel) -> DecoderParts: ...

    def protected_layers(self, model: PreTrainedModel) -> frozenset[int]:
        """Layers that no plan may skip (those that add visual features, for example)."""
        ...

    def grid(self, config: Any, processor: Any, *, width: int, height: int) -> TokenGrid:
        """The visual-token grid of an image of that size; pure."""
        ...

    def num_visual(self, config: Any, grid: TokenGrid) -> int:
        """Visual tokens that stand for `grid` in the prompt; pure."""
        ...

    def encode(
        self, model: PreTrainedModel, processor: Any, images: Sequence[ImageInput]
    ) -> list[Tensor]:
        """Pixels to projected visual tokens, one V x D tensor per image, in one batch."""
        ...

    def positions(self, prompt: Prompt, grids: Sequence[TokenGrid]) -> PromptPositions: ...


def sequential_positions(prompt: Prompt) -> PromptPositions:
    """One axis, one position per row: every family without multi-axis rotary embedding."""
    num_rows = len(prompt.token_ids)
    return PromptPositions(rows_PT=torch.arange(num_rows)[None], next=num_rows)
