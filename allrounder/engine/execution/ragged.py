"""The decoder loop over packed rows at different depths.

Rows of all requests lie in one packed tensor. Each layer runs on the rows whose plan keeps it; the
residual stream carries the others. At a selection point a request's dropped visual rows leave the
pack. Knows plans and KV; knows nothing of queues, text or sampling.

Shapes: D width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from allrounder.engine.execution.kv_cache import SequenceKv, share
from allrounder.engine.execution.pack import Pack
from allrounder.engine.execution.segment import Segment
from allrounder.engine.execution.selecting import select, selection_layers
from allrounder.models.adapter import Adapter


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
        pack = Pack(self._adapter, segments)
        points = selection_layers(segments)
        for layer_idx in range(self._num_layers):
            if layer_idx in points:
                select(self._adapter, pack, layer_idx)
            if layer_idx == until:
                break
            self._run_layer(pack, layer_idx)
            pack.add_planes(layer_idx)
        return pack.tails(segments, tails or [1] * len(segments))

    def _run_layer(self, pack: Pack, layer_idx: int) -> None:
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
            shape = (len(segment.hidden_SD), segment.plan.runs, segment.plan.points)
            alike.setdefault(shape, []).append(segment.kv)
    for members in alike.values():
        if len(members) > 1:
            share(members)
