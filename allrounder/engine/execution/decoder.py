"""The decoder loop over packed rows of requests with different plans, and its selection points.

Each layer runs on the rows whose plan keeps it; the residual stream carries the others. At a
selection point visual rows are chosen, merged and renumbered, and dropped ones leave the batch.
Knows plans and the KV cache; knows nothing of queues, text or sampling.

Shapes: S rows of one request, D width, C visual rows that arrive, K of them that go on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from allrounder.engine.execution.batch import PackedBatch, Segment
from allrounder.engine.execution.kv_cache import SequenceKv, share
from allrounder.models.adapter import Adapter, Rotation
from allrounder.models.families.family import merged
from allrounder.pruning.strategy import Arrival, Choice


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
        batch = PackedBatch(self._adapter, segments)
        points = selection_layers(segments)
        for layer_idx in range(self._num_layers):
            if layer_idx in points:
                select(self._adapter, batch, layer_idx)
            if layer_idx == until:
                break
            self._run_layer(batch, layer_idx)
            batch.add_planes(layer_idx)
        return batch.tails(segments, tails or [1] * len(segments))

    def _run_layer(self, batch: PackedBatch, layer_idx: int) -> None:
        active = tuple(idx for idx, seg in enumerate(batch.segments) if seg.plan.runs[layer_idx])
        if not active:
            return
        group = batch.group(active)
        if group.rows is None:
            batch.hidden_RD = self._adapter.layer(layer_idx, batch.hidden_RD, group.rotation, group)
            return
        output_RD = self._adapter.layer(
            layer_idx, batch.hidden_RD[group.rows], group.rotation, group
        )
        batch.hidden_RD.index_copy_(0, group.rows, output_RD)


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
            shape = (len(segment.hidden_SD), segment.plan.runs, segment.plan.points)
            alike.setdefault(shape, []).append(segment.kv)
    for members in alike.values():
        if len(members) > 1:
            share(members)


def selection_layers(segments: Sequence[Segment]) -> frozenset[int]:
    """Layers past the first at whose input something is selected or numbered anew."""
    return frozenset(
        layer_idx
        for segment in segments
        if segment.choose is not None or segment.renumbers
        for layer_idx, _ in segment.plan.points
        if layer_idx > 0
    )


def select(adapter: Adapter, batch: PackedBatch, layer_idx: int) -> None:
    """Let every segment with a selection at `layer_idx` choose; what it drops leaves the batch."""
    kept_of: dict[int, Tensor] = {}
    for idx, start in enumerate(batch.starts()):
        segment = batch.segments[idx]
        if segment.choose is None or segment.plan.selection_at(layer_idx) is None:
            continue
        rows = slice(start, start + batch.lengths[idx])
        hidden_SD = batch.hidden_RD[rows]
        _look_ahead(adapter, segment, layer_idx, hidden_SD, batch.rotation.part(rows))
        assert segment.visual_rows is not None, "only a prompt has selections"
        assert segment.visual_ids is not None, "rows that choose know which they are"
        device = hidden_SD.device
        arrival = Arrival(
            layer_idx=layer_idx,
            rows_C=segment.visual_ids.to(device),
            hidden_CD=hidden_SD[segment.visual_rows.to(device)],
        )
        choice = segment.choose(segment, arrival)
        kept_of[idx] = _surviving_rows(segment, choice, arrival, hidden_SD)
    if kept_of:
        batch.keep_rows(kept_of)
    _renumber(adapter, batch, layer_idx)


def _look_ahead(
    adapter: Adapter, segment: Segment, layer_idx: int, hidden_SD: Tensor, rotation: Rotation
) -> None:
    if any(probe.ahead and probe.layer_idx == layer_idx for probe in segment.probes):
        query_SHE, key_SKE, scaling = adapter.peek(layer_idx, hidden_SD, rotation)
        query_HSE, keys_KSE = query_SHE.transpose(0, 1), key_SKE.transpose(0, 1)
        segment.record_attention(layer_idx, query_HSE, keys_KSE, scaling, ahead=True)


def _surviving_rows(
    segment: Segment, choice: Choice, arrival: Arrival, hidden_SD: Tensor
) -> Tensor:
    """Rows of the segment that go on; merged ones are written into `hidden_SD`."""
    assert segment.visual_rows is not None
    assert segment.visual_ids is not None
    kept, arriving = choice.rows.cpu(), segment.visual_ids
    places = torch.searchsorted(arriving, kept)
    assert torch.equal(arriving[places], kept), "only rows that arrive can go on"
    rows = segment.visual_rows[places]
    if choice.weights is None:
        segment.planes = tuple(plane[places.to(plane.device)] for plane in segment.planes)
    else:
        hidden_SD[rows.to(hidden_SD.device)] = merged(choice.weights, arrival.hidden_CD)
        segment.planes = tuple(merged(choice.weights, plane) for plane in segment.planes)
    survives = torch.ones(len(hidden_SD), dtype=torch.bool)
    survives[segment.visual_rows] = False
    survives[rows] = True
    segment.visual_rows = (survives.cumsum(0) - 1)[rows]
    segment.visual_ids = kept
    segment.attention = {}
    return survives.nonzero()[:, 0]


def _renumber(adapter: Adapter, batch: PackedBatch, layer_idx: int) -> None:
    """Positions as if the rows that left at this point had never been."""
    last_of: dict[int, int] = {}
    for idx, end in enumerate(batch.ends()):
        segment = batch.segments[idx]
        selection = segment.plan.selection_at(layer_idx) if segment.renumbers else None
        if selection is not None:
            left = segment.plan.visual_rows(layer_idx - 1) - selection.count
            last_of[idx] = int(batch.positions_PR[0, end - 1]) - left
    if last_of:
        batch.renumber(adapter, last_of)
