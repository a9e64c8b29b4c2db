"""What happens at a selection point inside the decoder: look, choose, merge, drop, renumber.

Shapes: S rows of one request, D width, C visual rows that arrive, K of them that go on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allrounder.engine.execution.pack import Pack
from allrounder.engine.execution.segment import Segment
from allrounder.models.adapter import Adapter, Rotation
from allrounder.models.families.family import merged
from allrounder.pruning.strategy import Arrival, Choice


def selection_layers(segments: Sequence[Segment]) -> frozenset[int]:
    """Layers past the first at whose input something is selected or numbered anew."""
    return frozenset(
        layer_idx
        for segment in segments
        if segment.choose is not None or segment.renumbers
        for layer_idx, _ in segment.plan.points
        if layer_idx > 0
    )


def select(adapter: Adapter, pack: Pack, layer_idx: int) -> None:
    """Let every segment with a selection at `layer_idx` choose; what it drops leaves the pack."""
    kept_of: dict[int, Tensor] = {}
    for idx, start in enumerate(pack.starts()):
        segment = pack.segments[idx]
        if segment.choose is None or segment.plan.selection_at(layer_idx) is None:
            continue
        rows = slice(start, start + pack.lengths[idx])
        hidden_SD = pack.hidden_RD[rows]
        _look_ahead(adapter, segment, layer_idx, hidden_SD, pack.rotation.part(rows))
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
        pack.keep_rows(kept_of)
    _renumber(adapter, pack, layer_idx)


def _look_ahead(
    adapter: Adapter, segment: Segment, layer_idx: int, hidden_SD: Tensor, rotation: Rotation
) -> None:
    if any(probe.ahead and probe.layer_idx == layer_idx for probe in segment.probes):
        query_SHE, key_SKE, scaling = adapter.peek(layer_idx, hidden_SD, rotation)
        query_HSE, keys_KSE = query_SHE.transpose(0, 1), key_SKE.transpose(0, 1)
        segment.look(layer_idx, query_HSE, keys_KSE, scaling, ahead=True)


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


def _renumber(adapter: Adapter, pack: Pack, layer_idx: int) -> None:
    """Positions as if the rows that left at this point had never been."""
    last_of: dict[int, int] = {}
    for idx, end in enumerate(pack.ends()):
        segment = pack.segments[idx]
        selection = segment.plan.selection_at(layer_idx) if segment.renumbers else None
        if selection is not None:
            left = segment.plan.visual_rows(layer_idx - 1) - selection.count
            last_of[idx] = int(pack.positions_PR[0, end - 1]) - left
    if last_of:
        pack.renumber(adapter, last_of)
