"""Keys and values per (request, kept layer, surviving row), and the exact count of their bytes.

A layer that a plan skips never appears here. Requests that begin together with plans of one shape
share buffers, so that one attention call serves them all; one that leaves takes its memory along.

Shapes: B requests that share, K key heads, S added rows, C rows in use, R rows allocated, E head
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from allrounder.engine.protocols import DeviceOutOfMemory
from allrounder.errors import AllrounderError, EngineOutOfMemory, InternalError

_GROWTH_ROWS = 32


@dataclass(slots=True)
class _LayerKv:
    keys_BKRE: Tensor
    values_BKRE: Tensor
    num_rows: int

    def in_use(self) -> tuple[Tensor, Tensor]:
        num_rows = self.num_rows
        return self.keys_BKRE.narrow(2, 0, num_rows), self.values_BKRE.narrow(2, 0, num_rows)


class KvStore:
    """A contiguous, growing buffer per layer for requests whose rows grow in step."""

    def __init__(self, members: Sequence[SequenceKv]) -> None:
        self.members = list(members)
        self._layers: dict[int, _LayerKv] = {}

    def append(
        self, layer_idx: int, keys_BKSE: Tensor, values_BKSE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add rows to a layer; returns views of all its keys and values, B x K x C x E."""
        layer = self._layers.get(layer_idx)
        if layer is None:
            layer = _LayerKv(_room(keys_BKSE), _room(values_BKSE), 0)
            self._layers[layer_idx] = layer
        start, end = layer.num_rows, layer.num_rows + keys_BKSE.shape[2]
        if end > layer.keys_BKRE.shape[2]:
            layer.keys_BKRE = _grown(layer.keys_BKRE, start, end)
            layer.values_BKRE = _grown(layer.values_BKRE, start, end)
        layer.keys_BKRE.narrow(2, start, end - start).copy_(keys_BKSE)
        layer.values_BKRE.narrow(2, start, end - start).copy_(values_BKSE)
        layer.num_rows = end
        return layer.in_use()

    def append_row(
        self, layer_idx: int, keys_1KE: Tensor, values_1KE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`append` of one row to a store of one request that has this layer, in few kernels."""
        layer = self._layers[layer_idx]
        row = layer.num_rows
        if row >= layer.keys_BKRE.shape[2]:
            layer.keys_BKRE = _grown(layer.keys_BKRE, row, row + 1)
            layer.values_BKRE = _grown(layer.values_BKRE, row, row + 1)
        layer.keys_BKRE.select(2, row).copy_(keys_1KE)
        layer.values_BKRE.select(2, row).copy_(values_1KE)
        layer.num_rows = row + 1
        return layer.in_use()

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self._layers))

    def num_rows(self, layer_idx: int) -> int:
        layer = self._layers.get(layer_idx)
        return layer.num_rows if layer else 0

    def truncate(self, num_rows: Mapping[int, int]) -> None:
        """Forget the rows of each layer beyond so many, and layers that are not named."""
        self._layers = {idx: kv for idx, kv in self._layers.items() if idx in num_rows}
        for layer_idx, layer in self._layers.items():
            layer.num_rows = num_rows[layer_idx]

    @property
    def bytes_used(self) -> int:
        """Bytes of the rows that exist."""
        return sum(
            2 * layer.num_rows * layer.keys_BKRE[:, :, 0].numel() * layer.keys_BKRE.element_size()
            for layer in self._layers.values()
        )

    @property
    def bytes_held(self) -> int:
        """Bytes allocated, room for growth included."""
        return sum(
            layer.keys_BKRE.nbytes + layer.values_BKRE.nbytes for layer in self._layers.values()
        )

    def compact(self) -> None:
        """Give back the memory of members that were released."""
        kept = [idx for idx, member in enumerate(self.members) if not member.released]
        if len(kept) == len(self.members):
            return
        self.members = [self.members[idx] for idx in kept]
        if not kept:
            self._layers.clear()
        for layer in self._layers.values():
            layer.keys_BKRE = layer.keys_BKRE[kept]
            layer.values_BKRE = layer.values_BKRE[kept]

    def split(self) -> None:
        """Give each member buffers of its own: they no longer grow in step."""
        self.compact()
        for idx, member in enumerate(self.members):
            member.store = KvStore([member])
            for layer_idx, layer in self._layers.items():
                member.store._layers[layer_idx] = _LayerKv(
                    layer.keys_BKRE[idx : idx + 1].clone(),
                    layer.values_BKRE[idx : idx + 1].clone(),
                    layer.num_rows,
                )
        self._layers.clear()


class SequenceKv:
    """One request's hold on its keys and values."""

    def __init__(self) -> None:
        self.released = False
        self.store = KvStore([self])

    @property
    def is_empty(self) -> bool:
        return not self.store.layers

    def num_rows(self, layer_idx: int) -> int:
        return 0 if self.released else self.store.num_rows(layer_idx)

    def row_counts(self) -> dict[int, int]:
        """Rows in use, by layer."""
        return {layer_idx: self.store.num_rows(layer_idx) for layer_idx in self.layers}

    @property
    def layers(self) -> tuple[int, ...]:
        return () if self.released else self.store.layers

    @property
    def bytes_used(self) -> int:
        return 0 if self.released else self.store.bytes_used // len(self.store.members)

    @property
    def bytes_held(self) -> int:
        return 0 if self.released else self.store.bytes_held // len(self.store.members)

    def release(self, *, compact: bool = True) -> None:
        """Give back everything; safe to call twice. Without `compact` its store does so later."""
        self.released = True
        if compact:
            self.store.compact()

    def restart(self) -> None:
        """Forget all rows, to compute them anew."""
        self.release()
        self.released = False
        self.store = KvStore([self])


def share(members: Sequence[SequenceKv]) -> None:
    """Let requests that hold nothing yet, and will grow in step, use common buffers."""
    assert all(member.is_empty for member in members), "only empty ones can begin to share"
    store = KvStore(members)
    for member in members:
        member.store = store


def max_rows_held(num_rows: int) -> int:
    """Upper bound of the rows allocated for `num_rows` rows in use."""
    return num_rows + _GROWTH_ROWS


def _room(like_BKSE: Tensor, num_rows: int | None = None) -> Tensor:
    size, heads, added, width = like_BKSE.shape
    rows = (added if num_rows is None else num_rows) + _GROWTH_ROWS
    return torch.empty(size, heads, rows, width, dtype=like_BKSE.dtype, device=like_BKSE.device)


def _grown(buffer_BKRE: Tensor, used: int, needed: int) -> Tensor:
    larger = _room(buffer_BKRE, needed)
    larger[:, :, :used] = buffer_BKRE[:, :, :used]
    return larger


def is_out_of_memory(err: Exception) -> bool:
    """On CPU torch says so only in its message."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(err, known) or "can't allocate memory" in str(err)


@contextmanager
def undone_without_memory(held: Sequence[SequenceKv]) -> Iterator[None]:
    """Where the device runs out: all KV as it was, then DeviceOutOfMemory."""
    before = [kv.row_counts() for kv in held]
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        for kv, num_rows in zip(held, before, strict=True):
            kv.store.truncate(num_rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise DeviceOutOfMemory from err


def encoding_error(err: Exception) -> AllrounderError:
    """What the request is told whose images could not be encoded alone."""
    if is_out_of_memory(err):
        return EngineOutOfMemory("the request's images do not fit the device even alone")
    return InternalError("the image could not be encoded")
