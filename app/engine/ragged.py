"""The decoder loop over packed rows at different depths.

Rows of all requests lie in one packed tensor. Each layer runs on the rows whose plan keeps it; the
residual stream carries the others. At a selection point a request's dropped visual rows leave the
pack. Knows plans and KV; knows nothing of queues, text or sampling.

Shapes: R packed rows, S rows of one request, P position axes, D width, V visual tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from app.core import Plan
from app.engine.attention.sdpa import attend_one, attention_rows
from app.engine.kv import SequenceKv
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
    """The packed rows between two layers: hidden states, rotation, and each segment's length."""

    def __init__(self, adapter: Adapter, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.lengths = [len(segment.hidden_SD) for segment in segments]
        self.hidden_RD = torch.cat([segment.hidden_SD for segment in segments])
        positions_PR = torch.cat([segment.positions_PS for segment in segments], dim=1)
        self.rotation: Rotation = adapter.rotate(self.hidden_RD, positions_PR)

    def starts(self) -> list[int]:
        starts, total = [], 0
        for length in self.lengths:
            starts.append(total)
            total += length
        return starts

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

    def tails(self, counts: Sequence[int]) -> Tensor:
        ends = torch.tensor(self.lengths).cumsum(0).tolist()
        pieces = [self.hidden_RD[end - n : end] for end, n in zip(ends, counts, strict=True)]
        return torch.cat(pieces)

    def add_planes(self, layer_idx: int) -> None:
        for start, segment in zip(self.starts(), self.segments, strict=True):
            if layer_idx < len(segment.planes) and segment.visual_rows is not None:
                rows = (segment.visual_rows + start).to(self.hidden_RD.device)
                self.hidden_RD.index_add_(0, rows, segment.planes[layer_idx].to(self.hidden_RD))

    def rows_of(self, active: Sequence[int]) -> Tensor:
        starts = self.starts()
        pieces = [torch.arange(starts[idx], starts[idx] + self.lengths[idx]) for idx in active]
        return torch.cat(pieces).to(self.hidden_RD.device)


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
        pack = _Pack(self._adapter, segments)
        for layer_idx in range(self._num_layers):
            self._select(pack, layer_idx)
            if layer_idx == until:
                break
            self._run_layer(pack, layer_idx)
            pack.add_planes(layer_idx)
        return pack.tails(tails or [1] * len(segments))

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
        active = [idx for idx, seg in enumerate(pack.segments) if seg.plan.runs[layer_idx]]
        if not active:
            return
        call = _AttentionCall(
            [pack.segments[idx] for idx in active], [pack.lengths[idx] for idx in active]
        )
        if len(active) == len(pack.segments):
            pack.hidden_RD = self._adapter.layer(layer_idx, pack.hidden_RD, pack.rotation, call)
            return
        rows = pack.rows_of(active)
        output = self._adapter.layer(
            layer_idx, pack.hidden_RD[rows], pack.rotation.rows(rows), call
        )
        pack.hidden_RD = pack.hidden_RD.index_copy(0, rows, output)


class _AttentionCall:
    """What the model's attention calls: appends KV and attends, request by request."""

    def __init__(self, segments: Sequence[Segment], lengths: Sequence[int]) -> None:
        self._segments = segments
        self._lengths = lengths

    def __call__(
        self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        outputs, start = [], 0
        for segment, length in zip(self._segments, self._lengths, strict=True):
            end = start + length
            keys, values = segment.kv.append(
                layer_idx, key[0, :, start:end], value[0, :, start:end]
            )
            query_HSE = query[0, :, start:end]
            outputs.append(attend_one(query_HSE, keys, values, scaling))
            _probe(segment, layer_idx, query_HSE, keys, scaling)
            start = end
        return torch.cat(outputs, dim=1).transpose(0, 1)[None]


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
