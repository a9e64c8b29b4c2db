"""The rows that a prompt puts into the decoder under a plan; dropped tokens are not among them.

Shapes: S rows that enter, T rows of the unpruned prompt, P position axes, D width, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allrounder.core import Plan, Prompt
from allrounder.models.adapter import Adapter
from allrounder.models.families.family import PromptPositions, VisualTokens


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
    visual: VisualTokens,
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
