"""The rows that a prompt puts into the decoder under a plan; dropped tokens are not among them.

Shapes: S rows that enter, T rows of the unpruned prompt, P position axes, D width, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.core import Plan, Prompt
from app.models.base import Adapter
from app.models.families.base import PromptPositions, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one request, ready for the decoder loop.

    Attributes:
        visual_rows: row of each visual token among these, ascending.
        planes: one row per visual row each; plane i is added behind decoder layer i.
    """

    hidden_SD: Tensor
    positions_PS: Tensor
    visual_rows: Tensor
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
) -> Rows:
    """The prompt's rows, then those of `tail_ids`: generated tokens that are run anew."""
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
    hidden_SD[visual_rows.to(device)] = visual.tokens_VD[kept.to(device)].to(hidden_SD.dtype)
    tail = positions.next + torch.arange(len(tail_ids))
    positions_PT = torch.cat([positions.rows_PT, tail.expand(len(positions.rows_PT), -1)], dim=1)
    return Rows(
        hidden_SD=hidden_SD,
        positions_PS=positions_PT[:, rows_S],
        visual_rows=visual_rows,
        planes=tuple(plane[kept.to(device)] for plane in visual.planes),
    )


def _kept_at_entry(plan: Plan) -> Tensor:
    """Indexes of the visual tokens that enter the first layer."""
    if plan.selections and plan.selections[0].layer_idx == 0:
        kept = plan.selections[0].kept
        assert kept is not None, "a selection at layer 0 is made before prefill"
        return torch.tensor(kept, dtype=torch.long)
    return torch.arange(plan.num_visual)
