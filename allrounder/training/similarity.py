"""Cosine similarity of each layer's input and output: how much a skipped layer would change.

Shapes: L layers, R rows of a prompt under its plan, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from allrounder.core import Plan
from allrounder.engine.execution.batch import prompt_rows
from allrounder.measure.frozen import EncodedQuestion, FrozenModel, causal_attention


@torch.inference_mode()
def layer_similarity(frozen: FrozenModel, asked: EncodedQuestion, plan: Plan) -> Tensor:
    """cosine(input, output), L x R in double; all layers run, tokens may be dropped at layer 0."""
    assert plan.last_selection_layer == 0, "rows that leave later have no output to compare"
    adapter = frozen.adapter

    def attend(_: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return causal_attention(query, key, value, scaling)

    rows = prompt_rows(adapter, asked.prompt, asked.positions, asked.visual, plan)
    hidden_RD = rows.hidden_SD
    rotation = adapter.rotate(hidden_RD, rows.positions_PS)
    similarity = []
    for layer_idx in range(frozen.num_layers):
        output_RD = adapter.layer(layer_idx, hidden_RD, rotation, attend)
        similarity.append(cosine_similarity(hidden_RD.double(), output_RD.double(), dim=-1))
        hidden_RD = output_RD
        if layer_idx < len(rows.planes):
            visual_rows = rows.visual_rows.to(hidden_RD.device)
            hidden_RD = hidden_RD.index_add(0, visual_rows, rows.planes[layer_idx])
    return torch.stack(similarity).cpu()


def block_influence(frozen: FrozenModel, asked: EncodedQuestion) -> Tensor:
    """1 - cosine(input, output) per layer, mean over the prompt's rows (ShortGPT, section 3.2)."""
    dense = Plan.dense(num_layers=frozen.num_layers, num_visual=len(asked.visual_VD))
    return 1 - layer_similarity(frozen, asked, dense).mean(dim=1)
