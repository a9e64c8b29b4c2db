"""FLOPs as the tables of PAR (Pruning All-Rounder) count them, to stand beside the true ones.

Fitted to the paper's own figures: per layer f(n) = 2 (4 n d^2 + 2 n^2 d + 2 n d m), which is twice
FastV's multiply-adds with an MLP of two matrices; 465 rows beside the visual ones (a prompt and
some 370 generated tokens); visual rows gone after the first layer; a router that costs nothing.
The paper's 144 tokens and 28 layers of LLaVA-1.5-7B come to 51.4 % (printed: 51.3 %).
"""

from __future__ import annotations

from allrounder.core import ModelGeometry, Plan

_OTHER_ROWS = 465


def par_paper_ratio(geometry: ModelGeometry, plan: Plan) -> float:
    """Share of the dense model's FLOPs in that accounting."""
    dense = Plan.dense(num_layers=geometry.num_layers, num_visual=plan.num_visual)
    return par_paper_flops(geometry, plan) / par_paper_flops(geometry, dense)


def par_paper_flops(geometry: ModelGeometry, plan: Plan) -> int:
    """What PAR (Table 1) would print for `plan`, in FLOPs."""
    visual_rows = [plan.num_visual, *(plan.visual_rows(idx) for idx in range(1, len(plan.runs)))]
    return sum(
        _layer_flops(geometry, _OTHER_ROWS + count)
        for count, runs in zip(visual_rows, plan.runs, strict=True)
        if runs
    )


def _layer_flops(geometry: ModelGeometry, num_rows: int) -> int:
    width = geometry.width
    matrices = 4 * num_rows * width**2 + 2 * num_rows * width * geometry.mlp_width
    return 2 * (matrices + 2 * num_rows**2 * width)
