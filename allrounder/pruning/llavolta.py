"""LLaVolta: neighbouring visual tokens are averaged at the input of an early layer.

Shapes: V visual tokens, C of them that arrive, K windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from allrounder.pruning.strategy import Choice, Context, Strategy, View, check_renumber, refuse


@dataclass(frozen=True, kw_only=True)
class LLaVolta(Strategy):
    """LLaVolta's average pooling (arXiv 2406.20092, section 3), in test mode: nothing is trained.

    Each image is cut, row by row, into windows that differ by one token at most; 576 tokens to 144
    is the published stride 4. A window stands at the integer part of its average position.

    Attributes:
        layer: at whose input tokens are pooled. Published 2 (heavy) and 16 (light) of 32.
        renumber: number the windows consecutively instead.
    """

    name: ClassVar[str] = "llavolta"
    prunes_tokens: ClassVar[bool] = True

    layer: int = 2
    renumber: bool = False

    def check(self, context: Context) -> None:
        last = context.geometry.num_layers - 1
        if not 0 <= self.layer <= last:
            raise refuse("options.layer", f"layer must be from 0 to {last}, got {self.layer}")
        check_renumber(self, context)

    @property
    def merges(self) -> bool:
        return True

    @property
    def renumbers(self) -> bool:
        return self.renumber

    def selection_layer(self) -> int:
        return self.layer

    def choose(self, view: View, count: int) -> Choice:
        sizes = view.visual_per_image or (len(view.visual_VD),)
        bounds = windows(sizes, count)
        device = view.hidden_CD.device
        weights_KC = torch.zeros(count, bounds[-1], device=device)
        for idx, (start, stop) in enumerate(pairwise(bounds)):
            weights_KC[idx, start:stop] = 1 / (stop - start)
        middles = [(start + stop - 1) // 2 for start, stop in pairwise(bounds)]
        return Choice(rows=torch.tensor(middles, device=device), weights=weights_KC)


def windows(sizes: tuple[int, ...], count: int) -> list[int]:
    """Bounds of `count` windows over images of `sizes` tokens, ascending; none spans two images.

    Images get windows by their share of the tokens; fewer windows than images join the images.
    """
    total = sum(sizes)
    if count < len(sizes):
        sizes = (total,)
    quotas = _quotas(sizes, count)
    bounds, before = [0], 0
    for size, quota in zip(sizes, quotas, strict=True):
        bounds += [before + -(-size * idx // quota) for idx in range(1, quota + 1)]
        before += size
    return bounds


def _quotas(sizes: tuple[int, ...], count: int) -> list[int]:
    """At least one each, then to whoever has most tokens for each window."""
    quotas = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        neediest = max(range(len(sizes)), key=lambda idx: (sizes[idx] / quotas[idx], -idx))
        quotas[neediest] += 1
    return quotas
