"""Decoder layers with fused projections, for float32 on CPU, used only where they prove equal.

A pre-norm layer with separate q, k, v, gate and up matrices is rebuilt from the library's own
parameters: one matrix for q, k and v, one for gate and up, no copies but views. When a model is
loaded every layer is run beside the library's on random rows; one that differs stays unfused.

Shapes: R packed rows, D width, H query heads, K key heads, E head size, M MLP width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from allrounder.models.adapter import Attend, Rotation

CHECK_POSITIONS = (0, 7, 29)
_TOLERANCE = 1e-4
_MANY_ROWS = 512


class RunLayer(Protocol):
    def __call__(self, hidden_RD: Tensor, rotation: Rotation, attend: Attend) -> Tensor: ...


class FusedLayer:
    """Satisfies `RunLayer`. Raises AttributeError or AssertionError for another kind of layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer_idx: int = attention.layer_idx
        self._scaling: float = attention.scaling
        self._head_dim: int = attention.head_dim
        self._num_rotated = _num_heads(attention.q_proj, self._head_dim) + _num_heads(
            attention.k_proj, self._head_dim
        )
        self._num_queries = _num_heads(attention.q_proj, self._head_dim)
        self._qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = Projection([attention.o_proj])
        self._gate_up = Projection([mlp.gate_proj, mlp.up_proj])
        self._down = Projection([mlp.down_proj])
        self._before = _RmsNorm(layer.input_layernorm)
        self._between = _RmsNorm(layer.post_attention_layernorm)
        self._head_norms = _head_norms(attention)

    def __call__(self, hidden_RD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        query, key, value = self._heads(self._before(hidden_RD), rotation)
        attended = attend(self._layer_idx, query, key, value, self._scaling)
        hidden_RD = self._output(attended).add_(hidden_RD)
        gate_RM, up_RM = self._gate_up.apart(self._between(hidden_RD))
        return hidden_RD.add_(self._down(silu(gate_RM).mul_(up_RM)))

    def _heads(self, rows_RD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries R x H x E, keys and values R x K x E, rotated; for few rows in few kernels."""
        num_rows = rows_RD.shape[0]
        if num_rows >= _MANY_ROWS or self._head_norms is not None:
            query, key, value = (
                part.unflatten(1, (-1, self._head_dim)) for part in self._qkv.apart(rows_RD)
            )
            if self._head_norms is not None:
                query, key = self._head_norms[0](query), self._head_norms[1](key)
            return self._rotated(query, rotation), self._rotated(key, rotation), value
        heads = self._qkv(rows_RD).view(num_rows, -1, self._head_dim)
        num_rotated, num_queries = self._num_rotated, self._num_queries
        rotated = self._rotated(heads.narrow(1, 0, num_rotated), rotation)
        return (
            rotated.narrow(1, 0, num_queries),
            rotated.narrow(1, num_queries, num_rotated - num_queries),
            heads.narrow(1, num_rotated, num_rotated - num_queries),
        )

    def _rotated(self, plain: Tensor, rotation: Rotation) -> Tensor:
        cos, sin_low, sin_high = rotation.factors
        half = self._head_dim // 2
        turned = plain * cos
        turned.narrow(2, 0, half).addcmul_(plain.narrow(2, half, half), sin_low, value=-1)
        turned.narrow(2, half, half).addcmul_(plain.narrow(2, 0, half), sin_high)
        return turned


def fused_or_plain(
    layers: Sequence[nn.Module], plain: Sequence[RunLayer], *, width: int, rotation: Rotation
) -> list[RunLayer]:
    """For each layer its fused form, where there is one and it gives the same rows.

    Args:
        plain: the library's own layers behind the same call.
        rotation: of rows at `CHECK_POSITIONS`.
    """
    generator = torch.Generator().manual_seed(0)
    rows_RD = torch.randn(len(CHECK_POSITIONS), width, generator=generator)
    chosen: list[RunLayer] = []
    for layer, unfused in zip(layers, plain, strict=True):
        expected = unfused(rows_RD, rotation, _attend_to_self)
        try:
            fused = FusedLayer(layer)
            found = fused(rows_RD.clone(), rotation, _attend_to_self)
            fits = torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
        except (AttributeError, AssertionError, RuntimeError, TypeError):
            fits = False
        chosen.append(fused if fits else unfused)
    return chosen


class Projection:
    """Linear maps of the same rows as one matrix, of which the originals become views.

    It lies transposed, inputs by outputs: MKL then reads it about a quarter faster for one row, and
    multiplies 10 to 50 rows, a decoding batch, twice as fast; hundreds of rows lose up to a tenth.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        assert all(type(part) is nn.Linear for part in parts), "only plain linear maps fuse"
        assert len({part.bias is None for part in parts}) == 1, "all or none with a bias"
        weights = [part.weight.detach() for part in parts]
        self._weight_DM = torch.cat([weight.t() for weight in weights], dim=1)
        sizes = [len(weight) for weight in weights]
        self._spans = list(zip(accumulate(sizes, initial=0), sizes, strict=False))
        self._views = self._weight_DM.split(sizes, dim=1)
        for part, view_DM in zip(parts, self._views, strict=True):
            part.weight.data = view_DM.t()
        self._bias_M: Tensor | None = None
        if parts[0].bias is not None:
            self._bias_M = torch.cat([part.bias.detach() for part in parts])

    def __call__(self, rows_RD: Tensor) -> Tensor:
        if self._bias_M is None:
            return rows_RD @ self._weight_DM
        return torch.addmm(self._bias_M, rows_RD, self._weight_DM)

    def apart(self, rows_RD: Tensor) -> Sequence[Tensor]:
        """The product of each part: in one go for few rows, where reading the weights counts."""
        if rows_RD.shape[0] >= _MANY_ROWS and self._bias_M is None:
            return [rows_RD @ view_DM for view_DM in self._views]
        product = self(rows_RD)
        return [product.narrow(1, start, size) for start, size in self._spans]


class _RmsNorm:
    """Root-mean-square norm over the last axis (arXiv 1910.07467), in few kernels."""

    def __init__(self, norm: Any) -> None:
        width: int = norm.weight.numel()
        self._weight = norm.weight.detach() * math.sqrt(width)
        self._floor = torch.tensor(math.sqrt(norm.variance_epsilon * width))

    def __call__(self, rows: Tensor) -> Tensor:
        """rows / sqrt(|rows|^2 + width * epsilon), times the weight and the root of the width."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows.div(length.hypot_(self._floor)).mul_(self._weight)


def _head_norms(attention: Any) -> tuple[_RmsNorm, _RmsNorm] | None:
    if getattr(attention, "q_norm", None) is None:
        return None
    return _RmsNorm(attention.q_norm), _RmsNorm(attention.k_norm)


def _num_heads(projection: Any, head_dim: int) -> int:
    return int(projection.weight.shape[0]) // head_dim


def _attend_to_self(_: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention among the checked rows, each with itself and what precedes it."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("rhe,che->hrc", query, key) * scaling
    future = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("hrc,che->rhe", weights, value).flatten(1)
