"""Decoder layers with fused projections, for float32 on CPU, used only where they prove equal.

A pre-norm layer with separate q, k, v, gate and up matrices is rebuilt from the library's own
parameters: one matrix for q, k and v, one for gate and up, no copies but views. When a model is
loaded every layer is run beside the library's on random rows; one that differs stays unfused.

Shapes: R packed rows, D width, H query heads, K key heads, E head size, M MLP width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from app.models.base import Attend, Rotation

CHECK_POSITIONS = (0, 7, 29)
_TOLERANCE = 1e-4
_FEW_ROWS = range(3, 129)
_MLP_ROWS = 1024


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
        self._qkv = _Projection([attention.q_proj, attention.k_proj, attention.v_proj])
        self._output = _Projection([attention.o_proj])
        self._gate_up = _Projection([mlp.gate_proj, mlp.up_proj])
        self._down = _Projection([mlp.down_proj])
        self._before = _RmsNorm(layer.input_layernorm)
        self._between = _RmsNorm(layer.post_attention_layernorm)
        self._head_norms = _head_norms(attention)

    def __call__(self, hidden_RD: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        num_rows = len(hidden_RD)
        heads_RHE = self._qkv(self._before(hidden_RD)).view(num_rows, -1, self._head_dim)
        value_RKE = heads_RHE[:, self._num_rotated :]
        query_RHE, key_RKE = self._rotated(heads_RHE, rotation)
        attended = attend(self._layer_idx, query_RHE, key_RKE, value_RKE, self._scaling)
        hidden_RD = self._output(attended).add_(hidden_RD)
        for rows_RD in hidden_RD.split(_MLP_ROWS):
            gate, up = self._gate_up(self._between(rows_RD)).chunk(2, dim=-1)
            rows_RD.add_(self._down(silu(gate).mul_(up)))
        return hidden_RD

    def _rotated(self, heads_RHE: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        plain = heads_RHE[:, : self._num_rotated]
        if self._head_norms is not None:
            query_norm, key_norm = self._head_norms
            query, key = plain.split([self._num_queries, self._num_rotated - self._num_queries], 1)
            plain = torch.cat([query_norm(query), key_norm(key)], dim=1)
        cos, sin = rotation.cos[0, :, None], rotation.sin[0, :, None]
        low, high = plain.chunk(2, dim=-1)
        sin_low, sin_high = sin.chunk(2, dim=-1)
        turned = plain * cos
        turned_low, turned_high = turned.chunk(2, dim=-1)
        turned_low.addcmul_(high, sin_low, value=-1)
        turned_high.addcmul_(low, sin_high)
        return turned[:, : self._num_queries], turned[:, self._num_queries :]


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


class _Projection:
    """Linear maps of the same rows as one matrix, of which the originals become views."""

    def __init__(self, parts: Sequence[Any]) -> None:
        assert all(type(part) is nn.Linear for part in parts), "only plain linear maps fuse"
        assert len({part.bias is None for part in parts}) == 1, "all or none with a bias"
        self._weight = parts[0].weight
        self._bias: Tensor | None = parts[0].bias
        if len(parts) > 1:
            self._weight = torch.cat([part.weight.detach() for part in parts])
            sizes = [len(part.weight) for part in parts]
            for part, view in zip(parts, self._weight.split(sizes), strict=True):
                part.weight.data = view
            if self._bias is not None:
                self._bias = torch.cat([part.bias.detach() for part in parts])

    def __call__(self, rows_RD: Tensor) -> Tensor:
        # With a handful of rows MKL is about twice as fast when the weight stands on the left.
        if len(rows_RD) not in _FEW_ROWS:
            return linear(rows_RD, self._weight, self._bias)
        product: Tensor = (self._weight @ rows_RD.t()).t()
        return product.contiguous() if self._bias is None else product + self._bias


class _RmsNorm:
    """Root-mean-square norm over the last axis (arXiv 1910.07467), in few kernels."""

    def __init__(self, norm: Any) -> None:
        self._weight: Tensor = norm.weight
        self._inverse_width = 1 / norm.weight.numel()
        self._epsilon = torch.tensor(float(norm.variance_epsilon))

    def __call__(self, rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        mean_square = torch.addcmul(self._epsilon, length, length, value=self._inverse_width)
        return (rows * mean_square.rsqrt_()).mul_(self._weight)


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
