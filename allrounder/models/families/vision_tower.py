"""What strategies may ask of a vision tower: where one of its layers looks, its keys, its patches.

The watched layer hands its own q and k to `_look`, which computes the few rows that are asked for;
SDPA stays in use. Knows nothing of strategies.

Shapes: N tiles, P patches of one tile with its class token, G rows that reach the projector, H
heads, E width of all keys, F width of a patch, C columns side by side, V visual tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from allrounder.core import VisionGeometry

LOOK_NAME = "allrounder_look"
_MAX_SCORES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class VisionFacts:
    """Facts of the tower, a row for each projected visual token.

    Where a token stands for several patches each is their mean. Rows of a picture's line ends show
    no patch and are zero.

    Attributes:
        attention_HV: how much the class token attends to each token or, in towers without one, how
            much all patches do on average.
        keys_VE: keys of all heads side by side, as the watched layer compares them.
        features_VF: what the projector is given.
    """

    attention_HV: Tensor
    keys_VE: Tensor
    features_VF: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention_HV, self.keys_VE, self.features_VF

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @classmethod
    def joined(cls, images: Sequence[VisionFacts]) -> VisionFacts:
        return cls(
            attention_HV=torch.cat([image.attention_HV for image in images], dim=1),
            keys_VE=torch.cat([image.keys_VE for image in images]),
            features_VF=torch.cat([image.features_VF for image in images]),
        )


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Where a family's vision tower is watched.

    Attributes:
        attention: the attention module of the watched layer.
        projector: the module whose input the patch features are.
        merged: patches that one row of that input holds side by side.
        has_class: whether each tile's first patch is a class token.
        feature_width: width of one patch before the projector.
    """

    attention: Any
    projector: nn.Module
    has_class: bool
    feature_width: int
    merged: int = 1

    @property
    def geometry(self) -> VisionGeometry:
        heads, size = self.attention.num_heads, self.attention.head_dim
        return VisionGeometry(
            num_heads=heads,
            key_width=heads * size,
            feature_width=self.feature_width,
            has_class=self.has_class,
        )


@dataclass(kw_only=True)
class Seen:
    """What one pass of the tower showed; filled in while it runs."""

    tower: Tower
    attention: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    dtype: torch.dtype = torch.float32

    def columns(self, *, with_class: bool = False) -> list[Tensor]:
        """Attention and keys of each call of the watched layer, side by side: N x P x C."""
        first = int(self.tower.has_class and not with_class)
        pairs = zip(self.attention, self.keys, strict=True)
        return [
            torch.cat([attention_NHP.transpose(1, 2), keys_NPE], dim=-1)[:, first:]
            for attention_NHP, keys_NPE in pairs
        ]

    def facts(self, columns_VC: Tensor) -> VisionFacts:
        """Columns apart again: attention, keys, features."""
        geometry = self.tower.geometry
        sizes = [geometry.num_heads, geometry.key_width, geometry.feature_width]
        attention_VH, keys_VE, features_VF = columns_VC.split(sizes, dim=-1)
        return VisionFacts(
            attention_HV=attention_VH.T.contiguous(),
            keys_VE=keys_VE.contiguous().to(self.dtype),
            features_VF=features_VF.contiguous().to(self.dtype),
        )

    def keep_features(self, _projector: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0]
        self.dtype = rows.dtype
        self.features = rows.float().unflatten(-1, (self.tower.merged, -1)).mean(-2)


@contextmanager
def watched(tower: Tower) -> Iterator[Seen]:
    """Within, a pass of the tower fills in what is seen."""
    AttentionInterface.register(LOOK_NAME, _look)
    seen, attention = Seen(tower=tower), tower.attention
    config = attention.config
    hook = tower.projector.register_forward_pre_hook(seen.keep_features)
    try:
        attention.config = copy.copy(config)
        attention.config._attn_implementation = LOOK_NAME
        attention.config.allrounder_seen = seen
        yield seen
    finally:
        attention.config = config
        hook.remove()


def _look(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    seen: Seen = module.config.allrounder_seen
    seen.keys.append(key.transpose(1, 2).flatten(2).float())
    rows = query[:, :, :1] if seen.tower.has_class else query
    seen.attention.append(_mean_attention(rows, key, attention_mask, scaling))
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    return output


def _mean_attention(
    query: Tensor, key: Tensor, attention_mask: Tensor | None, scaling: float
) -> Tensor:
    """softmax(q k), mean over the queries: N x H x P. Few queries at a time, to bound memory."""
    num_tiles, num_heads, num_queries, _ = query.shape
    step = max(1, _MAX_SCORES // (num_tiles * num_heads * key.shape[2]))
    total = query.new_zeros(num_tiles, num_heads, key.shape[2], dtype=torch.float32)
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        scores = query[:, :, rows].float() @ key.float().transpose(2, 3) * scaling
        if attention_mask is not None:
            one_for_all = attention_mask.shape[-2] == 1
            mask = attention_mask if one_for_all else attention_mask[..., rows, :]
            hidden = torch.finfo(torch.float32).min
            scores = (
                scores.masked_fill(~mask, hidden) if mask.dtype is torch.bool else scores + mask
            )
        total += scores.softmax(-1).sum(2)
    return total / num_queries


def square_means(tiles_NPC: Tensor, side: int) -> Tensor:
    """Means over squares of `side` x `side` patches of square tiles, row by row: N x G x C."""
    across = int(tiles_NPC.shape[1] ** 0.5) // side
    squares: Tensor = tiles_NPC.unflatten(1, (across, side, across, side))
    return squares.mean((2, 4)).flatten(1, 2)


def watched_layer(num_layers: int, *, among: Sequence[int] | None = None) -> int:
    """The layer before the last, or the last of `among` up to it; where there is none, the last."""
    known = range(num_layers) if among is None else sorted(among)
    fitting = [idx for idx in known if idx <= num_layers - 2]
    return fitting[-1] if fitting else known[-1]
