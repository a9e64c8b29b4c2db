"""The rows of requests in one forward pass: each alone, and all packed between two layers.

Shapes: R packed rows, S rows of one request, T rows of the unpruned prompt, P position axes, D
width, V visual rows of a segment, K of them kept, C that arrive at a selection point (in attention:
keys), B requests that share buffers, H query heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from allrounder.core import Plan, Prompt
from allrounder.engine.execution.attention.sdpa import attend, attention_rows
from allrounder.engine.execution.kv_cache import KvStore, SequenceKv
from allrounder.models.adapter import Adapter, Rotation
from allrounder.models.families.family import ImageFeatures, PromptPositions
from allrounder.pruning.strategy import Arrival, Choice, Probe


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one request, ready for the decoder loop.

    Attributes:
        visual_rows: row of each visual token among these, ascending.
        visual_ids: index of each of them among the unpruned visual tokens.
        planes: one row per visual row each; plane i is added behind decoder layer i.
    """

    hidden_SD: Tensor
    positions_PS: Tensor
    visual_rows: Tensor
    visual_ids: Tensor
    planes: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.hidden_SD)

    def part(self, start: int, stop: int) -> Rows:
        """The rows from `start` to before `stop`."""
        inside = (self.visual_rows >= start) & (self.visual_rows < stop)
        on_device = inside.to(self.hidden_SD.device)
        return Rows(
            hidden_SD=self.hidden_SD[start:stop],
            positions_PS=self.positions_PS[:, start:stop],
            visual_rows=self.visual_rows[inside] - start,
            visual_ids=self.visual_ids[inside],
            planes=tuple(plane[on_device] for plane in self.planes),
        )


@torch.inference_mode()
def prompt_rows(
    adapter: Adapter,
    prompt: Prompt,
    positions: PromptPositions,
    visual: ImageFeatures,
    plan: Plan,
    *,
    tail_ids: Sequence[int] = (),
    weights_KV: Tensor | None = None,
    renumber: bool = False,
) -> Rows:
    """The prompt's rows, then those of `tail_ids`: generated tokens that are run anew.

    Args:
        weights_KV: each kept token, and its planes, is this sum of the unpruned ones.
        renumber: positions without those of the rows that do not enter; of one axis only.
    """
    num_rows = len(prompt.token_ids)
    kept = _kept_at_entry(plan)
    survives = torch.ones(num_rows + len(tail_ids), dtype=torch.bool)
    slots = torch.tensor(prompt.visual_rows, dtype=torch.long)
    survives[slots] = False
    survives[slots[kept]] = True
    rows_S = survives.nonzero()[:, 0]
    visual_rows = (survives.cumsum(0) - 1)[slots[kept]]
    token_ids = torch.tensor([*prompt.token_ids, *tail_ids])
    hidden_SD = adapter.embed(token_ids[rows_S].tolist())
    device = hidden_SD.device
    entering = visual.selected(kept.to(device), weights_KV)
    hidden_SD[visual_rows.to(device)] = entering.tokens_VD.to(hidden_SD.dtype)
    tail = positions.next + torch.arange(len(tail_ids))
    positions_PT = torch.cat([positions.rows_PT, tail.expand(len(positions.rows_PT), -1)], dim=1)
    return Rows(
        hidden_SD=hidden_SD,
        positions_PS=positions_PT[:, : len(rows_S)] if renumber else positions_PT[:, rows_S],
        visual_rows=visual_rows,
        visual_ids=kept,
        planes=entering.planes,
    )


def _kept_at_entry(plan: Plan) -> Tensor:
    """Indexes of the visual tokens that enter the first layer."""
    if plan.selections and plan.selections[0].layer_idx == 0:
        kept = plan.selections[0].kept
        assert kept is not None, "a selection at layer 0 is made before prefill"
        return torch.tensor(kept, dtype=torch.long)
    return torch.arange(plan.num_visual)


Choose = Callable[["Segment", Arrival], Choice]
"""Called at each selection point past layer 0. May give the segment a plan with other counts."""


@dataclass(kw_only=True)
class Segment:
    """One request's rows in a forward pass.

    Attributes:
        visual_rows: row of each visual token in this segment, ascending; None in decode.
        visual_ids: index of each of them among the unpruned visual tokens.
        planes: one row per visual row each; plane i is added behind decoder layer i.
        num_question: text rows after the last image, which end a prompt.
        choose: None where nothing is selected on the way.
        renumbers: from each selection point on its rows are numbered without those that left.
        may_share: these rows are a whole prompt, so requests with plans of the same shape that
            begin with it can use common buffers.
        attention: layer -> H x S x C attention of the probed rows, filled in as layers run and
            forgotten at each selection.
    """

    plan: Plan
    kv: SequenceKv
    hidden_SD: Tensor
    positions_PS: Tensor
    visual_rows: Tensor | None = None
    visual_ids: Tensor | None = None
    planes: tuple[Tensor, ...] = ()
    num_question: int = 0
    probes: tuple[Probe, ...] = ()
    choose: Choose | None = None
    renumbers: bool = False
    may_share: bool = False
    attention: dict[int, Tensor] = field(default_factory=dict)

    def probed_rows(self, probe: Probe, num_rows: int) -> Tensor:
        if probe.rows == "text":
            is_text = torch.ones(num_rows, dtype=torch.bool)
            if self.visual_rows is not None:
                is_text[self.visual_rows] = False
            return is_text.nonzero()[:, 0]
        count = 1 if probe.rows == "last" else self.num_question
        return torch.arange(num_rows - count, num_rows)

    def record_attention(
        self, layer_idx: int, query_HSE: Tensor, keys_KCE: Tensor, scaling: float, *, ahead: bool
    ) -> None:
        """Record the attention that its probes wish to see of this layer."""
        for probe in self.probes:
            if (probe.layer_idx, probe.ahead) != (layer_idx, ahead) or self.visual_rows is None:
                continue
            rows = self.probed_rows(probe, query_HSE.shape[1]).to(query_HSE.device)
            weights = attention_rows(query_HSE, keys_KCE, rows, scaling)
            self.attention[layer_idx] = weights[..., self.visual_rows.to(query_HSE.device)]


def as_planned(plan: Plan, weights: Mapping[int, Tensor] | None = None) -> Choose:
    """What a plan says that is already chosen, with its merging weights by layer."""

    def choose(_: Segment, arrival: Arrival) -> Choice:
        selection = plan.selection_at(arrival.layer_idx)
        assert selection is not None
        assert selection.kept is not None, "a plan that is chosen says what it keeps"
        rows = torch.tensor(selection.kept, dtype=torch.long)
        return Choice(rows=rows, weights=(weights or {}).get(arrival.layer_idx))

    return choose


class PackedBatch:
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
        self._groups: dict[tuple[int, ...], AttentionGroup] = {}

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
        self._groups.clear()

    def renumber(self, adapter: Adapter, last_of: dict[int, int]) -> None:
        """The rows of segments in `last_of` lie one behind the other, up to that position."""
        starts = self.starts()
        for idx, last in last_of.items():
            start, length = starts[idx], self.lengths[idx]
            self.positions_PR[0, start : start + length] = torch.arange(last + 1 - length, last + 1)
        self.rotation = adapter.rotate(self.hidden_RD, self.positions_PR)
        self._groups.clear()

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

    def group(self, active: tuple[int, ...]) -> AttentionGroup:
        """The rows of the segments `active`; the same for every layer with the same ones."""
        found = self._groups.get(active)
        if found is None:
            found = self._groups[active] = AttentionGroup(self, active)
        return found


class AttentionGroup:
    """The segments that run a layer: their rows of the batch, and one attention block per store."""

    def __init__(self, batch: PackedBatch, active: tuple[int, ...]) -> None:
        segments = [batch.segments[idx] for idx in active]
        lengths = [batch.lengths[idx] for idx in active]
        self.rows: Tensor | None = None
        self.rotation = batch.rotation
        if len(active) < len(batch.segments):
            starts = batch.starts()
            pieces = [torch.arange(starts[idx], starts[idx] + batch.lengths[idx]) for idx in active]
            self.rows = torch.cat(pieces).to(batch.hidden_RD.device)
            self.rotation = batch.rotation.rows(self.rows)
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
                segment.record_attention(
                    layer_idx, query_BHSE[idx], keys_BKCE[idx], scaling, ahead=False
                )
        return output_BHSE.transpose(1, 2).reshape(self.stop - self.start, -1)


def _side_by_side(segments: Sequence[Segment]) -> list[Segment]:
    by_kv = {id(segment.kv): segment for segment in segments}
    stores = {id(segment.kv.store): segment.kv.store for segment in segments}
    return [by_kv[id(member)] for store in stores.values() for member in store.members]
