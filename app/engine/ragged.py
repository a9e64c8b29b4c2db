"""The decoder loop over packed rows at different depths.

Rows of all requests lie in one packed tensor. Each layer runs on the rows whose plan keeps it; the
residual stream carries the others. At a selection point a request's dropped visual rows leave the
pack. Knows plans and KV; knows nothing of queues, text or sampling.

Shapes: R packed rows, S rows of one request, P position axes, D width, V visual tokens, B requests
that share buffers, H query heads, K key heads, C keys, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from app.core import Plan
from app.engine.attention.sdpa import attend, attention_rows
from app.engine.kv import KvStore, SequenceKv, share
from app.models.base import Adapter, Rotation
from app.pruning.base import Probe

Choose = Callable[["Segment"], Plan]


@dataclass(kw_only=True)
class Segment:
    """One request's rows in a forward pass.

    Attributes:
        visual_rows: row of each visual token in this segment, ascending; None in decode.
        planes: one row per visual row each; plane i is added behind decoder layer i.
        choose: called at a selection point past layer 0; returns the plan with its kept rows.
        may_share: these rows are a whole prompt, so requests with plans of the same shape that
            begin with it can use common buffers.
        attention: layer -> H x S x V attention of the probed rows, filled in as layers run.
    """

    plan: Plan
    kv: SequenceKv
    hidden_SD: Tensor
    positions_PS: Tensor
    visual_rows: Tensor | None = None
    planes: tuple[Tensor, ...] = ()
    probes: tuple[Probe, ...] = ()
    choose: Choose | None = None
    may_share: bool = False
    attention: dict[int, Tensor] = field(default_factory=dict)

    def probed_rows(self, probe: Probe, num_rows: int) -> Tensor:
        last = torch.tensor([num_rows - 1])
        if probe.rows == "last":
            return last
        is_text = torch.ones(num_rows, dtype=torch.bool)
        if self.visual_rows is not None:
            is_text[self.visual_rows] = False
        return is_text.nonzero()[:, 0]


class _Pack:
    """The packed rows between two layers: hidden states, rotation, and each segment's length.

    Segments whose requests share buffers lie side by side, in the order of their store.
    """

    def __init__(self, adapter: Adapter, segments: Sequence[Segment]) -> None:
        self.segments = _side_by_side(segments)
        self.lengths = [len(segment.hidden_SD) for segment in self.segments]
        self.hidden_RD = torch.cat([segment.hidden_SD for segment in self.segments])
        positions_PR = torch.cat([segment.positions_PS for segment in self.segments], dim=1)
        self.rotation: Rotation = adapter.rotate(self.hidden_RD, positions_PR)
        self._has_planes = any(segment.planes for segment in self.segments)
        self._parties: dict[tuple[int, ...], _Party] = {}

    def starts(self) -> list[int]:
        return [0, *accumulate(self.lengths)][:-1]

    def keep_rows(self, kept_of: dict[int, Tensor]) -> None:
        """Segments in `kept_of` keep only those of their rows; the others keep all."""
        pieces = []
        for idx, (start, length) in enumerate(zip(self.starts(), self.lengths, strict=True)):
            rows = kept_of.get(idx)
            pieces.append(torch.arange(length) + start if rows is None else rows + start)
        self.lengths = [len(piece) for piece in pieces]
        index = torch.cat(pieces).to(self.hidden_RD.device)
        self.hidden_RD = self.hidden_RD[index]
        self.rotation = self.rotation.rows(index)
        self._parties.clear()

    def tails(self, segments: Sequence[Segment], counts: Sequence[int]) -> Tensor:
        """The last rows of each of `segments`, in their order."""
        ends = dict(zip(map(id, self.segments), accumulate(self.lengths), strict=True))
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

    def party(self, active: tuple[int, ...]) -> _Party:
        """The rows of the segments `active`; the same for every layer with the same ones."""
        found = self._parties.get(active)
        if found is None:
            found = self._parties[active] = _Party(self, active)
        return found


class _Party:
    """The segments that run a layer: their rows of the pack, and one attention block per store."""

    def __init__(self, pack: _Pack, active: tuple[int, ...]) -> None:
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
                _probe(segment, layer_idx, query_BHSE[idx], keys_BKCE[idx], scaling)
        return output_BHSE.transpose(1, 2).reshape(self.stop - self.start, -1)


class DecoderLoop:
    """Runs segments of different plans through one adapter, layer by layer."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._num_layers = adapter.geometry.num_layers

    @torch.inference_mode()
    def forward(
        self,
        segments: Sequence[Segment],
        *,
        until: int | None = None,
        tails: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states of the rows whose logits are wanted, before the final norm.

        Args:
            until: stop before this layer, once its selections are made.
            tails: how many last rows of each segment are wanted; one each where None.
        Returns:
            sum(tails) x D, segment by segment.
        """
        _share_buffers(segments)
        pack = _Pack(self._adapter, segments)
        for layer_idx in range(self._num_layers):
            self._select(pack, layer_idx)
            if layer_idx == until:
                break
            self._run_layer(pack, layer_idx)
            pack.add_planes(layer_idx)
        return pack.tails(segments, tails or [1] * len(segments))

    def _select(self, pack: _Pack, layer_idx: int) -> None:
        kept_of: dict[int, Tensor] = {}
        for idx, segment in enumerate(pack.segments):
            if segment.choose is None or segment.plan.last_selection_layer != layer_idx:
                continue
            segment.plan = segment.choose(segment)
            kept_of[idx] = _surviving_rows(segment, pack.lengths[idx])
        if kept_of:
            pack.keep_rows(kept_of)

    def _run_layer(self, pack: _Pack, layer_idx: int) -> None:
        active = tuple(idx for idx, seg in enumerate(pack.segments) if seg.plan.runs[layer_idx])
        if not active:
            return
        party = pack.party(active)
        if party.rows is None:
            pack.hidden_RD = self._adapter.layer(layer_idx, pack.hidden_RD, party.rotation, party)
            return
        output_RD = self._adapter.layer(
            layer_idx, pack.hidden_RD[party.rows], party.rotation, party
        )
        pack.hidden_RD.index_copy_(0, party.rows, output_RD)


def _share_buffers(segments: Sequence[Segment]) -> None:
    """Stores whose members are not all here are split; whole prompts with equal plans share."""
    present = {id(segment.kv) for segment in segments}
    for segment in segments:
        members = segment.kv.store.members
        if len(members) > 1 and not all(id(member) in present for member in members):
            segment.kv.store.split()
    alike: dict[Hashable, list[SequenceKv]] = {}
    for segment in segments:
        if segment.may_share and segment.kv.is_empty:
            plan = segment.plan
            points = tuple((selection.layer_idx, selection.count) for selection in plan.selections)
            shape = (len(segment.hidden_SD), plan.runs, points)
            alike.setdefault(shape, []).append(segment.kv)
    for members in alike.values():
        if len(members) > 1:
            share(members)


def _side_by_side(segments: Sequence[Segment]) -> list[Segment]:
    by_kv = {id(segment.kv): segment for segment in segments}
    stores = {id(segment.kv.store): segment.kv.store for segment in segments}
    return [by_kv[id(member)] for store in stores.values() for member in store.members]


def _probe(segment: Segment, layer_idx: int, query: Tensor, keys: Tensor, scaling: float) -> None:
    for probe in segment.probes:
        if probe.layer_idx == layer_idx and segment.visual_rows is not None:
            rows = segment.probed_rows(probe, query.shape[1]).to(query.device)
            weights = attention_rows(query, keys, rows, scaling)
            segment.attention[layer_idx] = weights[..., segment.visual_rows.to(query.device)]


def _surviving_rows(segment: Segment, num_rows: int) -> Tensor:
    assert segment.visual_rows is not None, "only a prompt has selections"
    assert segment.plan.kept is not None, "the strategy has just chosen"
    kept = torch.tensor(segment.plan.kept, dtype=torch.long)
    survives = torch.ones(num_rows, dtype=torch.bool)
    survives[segment.visual_rows] = False
    survives[segment.visual_rows[kept]] = True
    segment.visual_rows = (survives.cumsum(0) - 1)[segment.visual_rows[kept]]
    segment.planes = tuple(plane[kept.to(plane.device)] for plane in segment.planes)
    segment.choose = None
    return survives.nonzero()[:, 0]
