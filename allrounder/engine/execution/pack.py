"""Packed rows of several requests between two layers, and the attention of each.

Shapes: R packed rows, S rows of one request, P position axes, D width, B requests that share
buffers, H query heads, K key heads, C keys, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from allrounder.engine.execution.attention.sdpa import attend
from allrounder.engine.execution.kv_cache import KvStore
from allrounder.engine.execution.segment import Segment
from allrounder.models.adapter import Adapter, Rotation


class Pack:
    """The packed rows between two layers: hidden states, rotation, and each segment's length.

    Segments whose requests share buffers lie side by side, in the order of their store.
    """

    def __init__(self, adapter: Adapter, segments: Sequence[Segment]) -> None:
        self.segments = _side_by_side(segments)
        self.lengths = [len(segment.hidden_SD) for segment in self.segments]
        self.hidden_RD = torch.cat([segment.hidden_SD for segment in self.segments])
        self.positions_PR = torch.cat([segment.positions_PS for segment in self.segments], dim=1)
        self.rotation: Rotation = adapter.rotate(self.hidden_RD, self.positions_PR)
        self._has_planes = any(segment.planes for segment in self.segments)
        self._parties: dict[tuple[int, ...], Party] = {}

    def starts(self) -> list[int]:
        return [0, *accumulate(self.lengths)][:-1]

    def ends(self) -> list[int]:
        return list(accumulate(self.lengths))

    def keep_rows(self, kept_of: dict[int, Tensor]) -> None:
        """Segments in `kept_of` keep only those of their rows; the others keep all."""
        pieces = []
        for idx, (start, length) in enumerate(zip(self.starts(), self.lengths, strict=True)):
            rows = kept_of.get(idx)
            pieces.append(torch.arange(length) + start if rows is None else rows + start)
        self.lengths = [len(piece) for piece in pieces]
        index = torch.cat(pieces).to(self.hidden_RD.device)
        self.hidden_RD = self.hidden_RD[index]
        self.positions_PR = self.positions_PR[:, index.to(self.positions_PR.device)]
        self.rotation = self.rotation.rows(index)
        self._parties.clear()

    def renumber(self, adapter: Adapter, last_of: dict[int, int]) -> None:
        """The rows of segments in `last_of` lie one behind the other, up to that position."""
        starts = self.starts()
        for idx, last in last_of.items():
            start, length = starts[idx], self.lengths[idx]
            self.positions_PR[0, start : start + length] = torch.arange(last + 1 - length, last + 1)
        self.rotation = adapter.rotate(self.hidden_RD, self.positions_PR)
        self._parties.clear()

    def tails(self, segments: Sequence[Segment], counts: Sequence[int]) -> Tensor:
        """The last rows of each of `segments`, in their order."""
        ends = dict(zip(map(id, self.segments), self.ends(), strict=True))
        pieces = [
            self.hidden_RD[ends[id(segment)] - count : ends[id(segment)]]
            for segment, count in zip(segments, counts, strict=True)
        ]
        return torch.cat(pieces)

    def add_planes(self, layer_idx: int) -> None:
        if not self._has_planes:
            return
        for start, segment in zip(self.starts(), self.segments, strict=True):
            if layer_idx < len(segment.planes) and segment.visual_rows is not None:
                rows = (segment.visual_rows + start).to(self.hidden_RD.device)
                self.hidden_RD.index_add_(0, rows, segment.planes[layer_idx].to(self.hidden_RD))

    def party(self, active: tuple[int, ...]) -> Party:
        """The rows of the segments `active`; the same for every layer with the same ones."""
        found = self._parties.get(active)
        if found is None:
            found = self._parties[active] = Party(self, active)
        return found


class Party:
    """The segments that run a layer: their rows of the pack, and one attention block per store."""

    def __init__(self, pack: Pack, active: tuple[int, ...]) -> None:
        segments = [pack.segments[idx] for idx in active]
        lengths = [pack.lengths[idx] for idx in active]
        self.rows: Tensor | None = None
        self.rotation = pack.rotation
        if len(active) < len(pack.segments):
            starts = pack.starts()
            pieces = [torch.arange(starts[idx], starts[idx] + pack.lengths[idx]) for idx in active]
            self.rows = torch.cat(pieces).to(pack.hidden_RD.device)
            self.rotation = pack.rotation.rows(self.rows)
        self._blocks: list[_Block] = []
        start = 0
        while segments:
            size = len(segments[0].kv.store.members)
            self._blocks.append(_Block(start, lengths[0], segments[:size]))
            start += size * lengths[0]
            segments, lengths = segments[size:], lengths[size:]
        self._only_single_rows = all(block.is_single_row for block in self._blocks)

    def __call__(
        self, layer_idx: int, query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
    ) -> Tensor:
        """Append KV and attend, block by block: what the model's attention calls."""
        if self._only_single_rows:
            return self._attend_rows(layer_idx, query_RHE, key_RKE, value_RKE, scaling)
        if len(self._blocks) == 1:
            block = self._blocks[0]
            return block.attend(layer_idx, query_RHE, key_RKE, value_RKE, scaling)
        output = query_RHE.new_empty(len(query_RHE), query_RHE[0].numel())
        for block in self._blocks:
            rows = slice(block.start, block.stop)
            output[rows] = block.attend(
                layer_idx, query_RHE[rows], key_RKE[rows], value_RKE[rows], scaling
            )
        return output

    def _attend_rows(
        self, layer_idx: int, query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
    ) -> Tensor:
        """A decoding batch of different plans: hardly anything per request but its attention."""
        queries = query_RHE[:, None, :, None].unbind(0)
        new_keys, new_values = key_RKE[:, None].unbind(0), value_RKE[:, None].unbind(0)
        outputs = []
        for row, block in enumerate(self._blocks):
            keys, values = block.store.append_row(layer_idx, new_keys[row], new_values[row])
            outputs.append(attend(queries[row], keys, values, scaling))
        together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return together.view(query_RHE.shape[0], -1)


class _Block:
    """Equally long segments that share a store: one attention call for all of them."""

    def __init__(self, start: int, length: int, segments: Sequence[Segment]) -> None:
        self.start = start
        self.stop = start + length * len(segments)
        self._segments = segments
        self.store: KvStore = segments[0].kv.store
        self.is_single_row = self.stop - start == 1 and not segments[0].kv.is_empty
        self._shape = (len(segments), length)
        self._probes = any(segment.probes for segment in segments)

    def attend(
        self, layer_idx: int, query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
    ) -> Tensor:
        query_BHSE = query_RHE.view(*self._shape, *query_RHE.shape[1:]).transpose(1, 2)
        keys_BKCE, values_BKCE = self.store.append(
            layer_idx,
            key_RKE.view(*self._shape, *key_RKE.shape[1:]).transpose(1, 2),
            value_RKE.view(*self._shape, *value_RKE.shape[1:]).transpose(1, 2),
        )
        output_BHSE = attend(query_BHSE, keys_BKCE, values_BKCE, scaling)
        if self._probes:
            for idx, segment in enumerate(self._segments):
                segment.look(layer_idx, query_BHSE[idx], keys_BKCE[idx], scaling, ahead=False)
        return output_BHSE.transpose(1, 2).reshape(self.stop - self.start, -1)


def _side_by_side(segments: Sequence[Segment]) -> list[Segment]:
    by_kv = {id(segment.kv): segment for segment in segments}
    stores = {id(segment.kv.store): segment.kv.store for segment in segments}
    return [by_kv[id(member)] for store in stores.values() for member in store.members]
