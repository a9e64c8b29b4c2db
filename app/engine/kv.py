"""Keys and values per (request, kept layer, surviving row), and the exact count of their bytes.

A layer that a plan skips never appears here. Shapes: K key heads, R rows, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GROWTH_ROWS = 32


@dataclass(slots=True)
class _LayerKv:
    keys_KRE: Tensor
    values_KRE: Tensor
    num_rows: int


class SequenceKv:
    """One request's KV: a contiguous, growing buffer per layer that has run."""

    def __init__(self) -> None:
        self._layers: dict[int, _LayerKv] = {}

    def append(self, layer_idx: int, keys_KRE: Tensor, values_KRE: Tensor) -> tuple[Tensor, Tensor]:
        """Add rows to a layer; returns views of all its keys and values so far."""
        added = keys_KRE.shape[1]
        layer = self._layers.get(layer_idx)
        if layer is None:
            layer = _LayerKv(_room(keys_KRE, added), _room(values_KRE, added), 0)
            self._layers[layer_idx] = layer
        end = layer.num_rows + added
        if end > layer.keys_KRE.shape[1]:
            layer.keys_KRE = _grown(layer.keys_KRE, layer.num_rows, end)
            layer.values_KRE = _grown(layer.values_KRE, layer.num_rows, end)
        layer.keys_KRE[:, layer.num_rows : end] = keys_KRE
        layer.values_KRE[:, layer.num_rows : end] = values_KRE
        layer.num_rows = end
        return layer.keys_KRE[:, :end], layer.values_KRE[:, :end]

    def num_rows(self, layer_idx: int) -> int:
        layer = self._layers.get(layer_idx)
        return layer.num_rows if layer else 0

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self._layers))

    @property
    def bytes_used(self) -> int:
        """Bytes of the rows that exist."""
        return sum(
            2 * layer.num_rows * layer.keys_KRE[:, 0].numel() * layer.keys_KRE.element_size()
            for layer in self._layers.values()
        )

    @property
    def bytes_held(self) -> int:
        """Bytes allocated, room for growth included."""
        return sum(
            layer.keys_KRE.nbytes + layer.values_KRE.nbytes for layer in self._layers.values()
        )

    def release(self) -> None:
        self._layers.clear()


def max_rows_held(num_rows: int) -> int:
    """Upper bound of the rows allocated for `num_rows` rows in use."""
    return num_rows + _GROWTH_ROWS


def _room(like_KRE: Tensor, num_rows: int) -> Tensor:
    heads, _, size = like_KRE.shape
    return torch.empty(
        heads, num_rows + _GROWTH_ROWS, size, dtype=like_KRE.dtype, device=like_KRE.device
    )


def _grown(buffer_KRE: Tensor, used: int, needed: int) -> Tensor:
    larger = _room(buffer_KRE, needed)
    larger[:, :used] = buffer_KRE[:, :used]
    return larger
