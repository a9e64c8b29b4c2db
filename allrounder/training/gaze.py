"""Where the frozen decoder looks while it reads questions, many questions of one picture at once.

A question's rows depend on the picture's, never the other way round, so the rows up to the picture
run once, and every question stands behind them alone. No answer is made and no layer behind the one
that is asked for is run.

Shapes: R rows, P position axes, D width, V visual tokens, H query heads, K key heads, E head size,
Q rows of one question, C rows up to the picture's end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allrounder.engine.execution.attention.sdpa import attend
from allrounder.engine.execution.rows import prompt_rows
from allrounder.training.frozen import Asked, FrozenModel, make_plan


@torch.inference_mode()
def gaze(frozen: FrozenModel, asked: Sequence[Asked], layer_idx: int) -> list[Tensor]:
    """H x Q x V attention of each question's rows in layer `layer_idx`; all ask of one picture."""
    adapter = frozen.adapter
    first = asked[0]
    dense = make_plan(num_layers=frozen.num_layers, num_visual=len(first.visual_VD))
    shared = first.prompt.visual_rows[-1] + 1
    whole = [prompt_rows(adapter, one.prompt, one.positions, one.visual, dense) for one in asked]
    tails = [len(rows) - shared for rows in whole]
    hidden_RD = torch.cat(
        [whole[0].hidden_SD[:shared], *(rows.hidden_SD[shared:] for rows in whole)]
    )
    positions_PR = torch.cat(
        [whole[0].positions_PS[:, :shared], *(rows.positions_PS[:, shared:] for rows in whole)],
        dim=1,
    )
    rotation = adapter.rotate(hidden_RD, positions_PR)
    behind = _Behind(shared, tails)
    for idx in range(layer_idx + 1):
        behind.watched = idx == layer_idx
        hidden_RD = adapter.layer(idx, hidden_RD, rotation, behind)
        if idx < len(whole[0].planes):
            hidden_RD = hidden_RD.index_add(0, whole[0].visual_rows, whole[0].planes[idx])
    visual_rows = whole[0].visual_rows
    return [
        weights_HQR[:, -one.prompt.question_slot[1] :, visual_rows]
        for one, weights_HQR in zip(asked, behind.weights, strict=True)
    ]


def can_share(asked: Sequence[Asked]) -> bool:
    """Whether all prompts are alike up to the end of the picture."""
    ends = {one.prompt.visual_rows[-1] + 1 for one in asked}
    return len({one.prompt.token_ids[: min(ends)] for one in asked}) == 1 and len(ends) == 1


class _Behind:
    """Attention of a shared start and of tails that each see it and themselves."""

    def __init__(self, shared: int, tails: Sequence[int]) -> None:
        self._shared = shared
        self._tails = list(tails)
        self.watched = False
        self.weights: list[Tensor] = []

    def __call__(
        self, _: int, query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float
    ) -> Tensor:
        start = slice(0, self._shared)
        outputs = [_causal(query_RHE[start], key_RKE[start], value_RKE[start], scaling)]
        groups = query_RHE.shape[1] // key_RKE.shape[1]
        keys_HRE = key_RKE.transpose(0, 1).repeat_interleave(groups, dim=0)
        values_HRE = value_RKE.transpose(0, 1).repeat_interleave(groups, dim=0)
        queries_HRE = query_RHE.transpose(0, 1) * scaling
        at = self._shared
        for count in self._tails:
            own = slice(at, at + count)
            at += count
            far = queries_HRE[:, own] @ keys_HRE[:, start].transpose(1, 2)
            near = queries_HRE[:, own] @ keys_HRE[:, own].transpose(1, 2)
            future = torch.ones(count, count, dtype=torch.bool, device=near.device).triu(1)
            near = near.masked_fill(future, float("-inf"))
            weights_HQR = torch.cat([far, near], dim=-1).softmax(-1)
            if self.watched:
                self.weights.append(weights_HQR)
            mixed = weights_HQR[..., : self._shared] @ values_HRE[:, start]
            mixed = mixed + weights_HQR[..., self._shared :] @ values_HRE[:, own]
            outputs.append(mixed.transpose(0, 1).flatten(1))
        return torch.cat(outputs)


def _causal(query_RHE: Tensor, key_RKE: Tensor, value_RKE: Tensor, scaling: float) -> Tensor:
    query, key, value = (each.transpose(0, 1)[None] for each in (query_RHE, key_RKE, value_RKE))
    return attend(query, key, value, scaling)[0].transpose(0, 1).flatten(1)
