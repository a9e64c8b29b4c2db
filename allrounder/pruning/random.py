"""A uniform random subset: the floor that every strategy must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from allrounder.pruning.strategy import Context, Strategy, View, keep_best


@dataclass(frozen=True, kw_only=True)
class Random(Strategy):
    """Tokens uniformly at random; layers too, from the last half, when they are asked for.

    Repeatable: the draw depends on the request's own seed. A plain number is spent on tokens alone,
    which is the stronger baseline.
    """

    name: ClassVar[str] = "random"
    prunes_tokens: ClassVar[bool] = True
    prunes_layers: ClassVar[bool] = True
    splits_numbers: ClassVar[bool] = False

    def candidates(self, context: Context) -> tuple[int, ...]:
        num_layers = context.geometry.num_layers
        return tuple(range(num_layers // 2, num_layers))

    def select(self, view: View, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(view.seed)
        return keep_best(torch.rand(len(view.visual_VD), generator=generator), count)

    def skip(self, view: View, allowed: tuple[int, ...], count: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(view.seed + 1)
        order = torch.randperm(len(allowed), generator=generator)[:count].tolist()
        return tuple(sorted(allowed[idx] for idx in order))
