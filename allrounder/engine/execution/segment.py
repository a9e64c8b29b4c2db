"""One request's rows in a forward pass, and how it chooses among its visual rows on the way.

Shapes: S rows of one request, P position axes, D width, V visual rows among them, H query heads,
C visual rows that arrive at a selection point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from allrounder.core import Plan
from allrounder.engine.execution.attention.sdpa import attention_rows
from allrounder.engine.execution.kv_cache import SequenceKv
from allrounder.pruning.strategy import Arrival, Choice, Probe

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

    def look(
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
