"""FLOPs as the tables of PAR (Pruning All-Rounder) count them, to stand beside the true ones.

Fitted to the paper's own figures: per layer f(n) = 2 (4 n d^2 + 2 n^2 d + 2 n d m), two MLP
matrices, 465 rows beside the visual ones (a prompt and some 370 generated tokens), visual rows gone
after the first layer, and a router that costs nothing. The paper's 144 tokens and 28 layers of
LLaVA-1.5-7B come to 51.4 % (printed: 51.3 %).
"""

from __future__ import annotations

from allrounder.core import ModelGeometry, Plan
from allrounder.cost import PAPER_OTHER_ROWS, paper_layer_flops


def par_paper_ratio(geometry: ModelGeometry, plan: Plan) -> float:
    """Share of the dense model's FLOPs in that accounting."""
    dense = Plan.dense(num_layers=geometry.num_layers, num_visual=plan.num_visual)
    return _flops(geometry, plan) / _flops(geometry, dense)


def _flops(geometry: ModelGeometry, plan: Plan) -> int:
    visual_rows = [plan.num_visual, *(plan.visual_rows(idx) for idx in range(1, len(plan.runs)))]
    return sum(
        paper_layer_flops(geometry, PAPER_OTHER_ROWS + count)
        for count, runs in zip(visual_rows, plan.runs, strict=True)
        if runs
    )
