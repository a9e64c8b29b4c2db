"""PAR's own accounting of FLOPs, beside the figures that the paper prints."""

from __future__ import annotations

import pytest

from allrounder.core import Plan, Selection
from allrounder.evaluation.paper_flops import par_paper_flops, par_paper_ratio
from tests.cases import LLAVA_1_5_7B


@pytest.mark.parametrize(
    ("tokens", "layers", "teraflops", "percent"),
    [
        (576, 32, (11.04, 11.06), (100, 100)),
        (144, 28, (5.66, 5.69), (51.25, 51.45)),
        (576, 24, (8.27, 8.31), (74.95, 75.15)),
        (272, 30, (7.30, 7.35), (66.1, 66.4)),
        (128, 24, (4.75, 4.80), (43.1, 43.4)),
        (576, 28, (9.6, 9.7), (87.4, 87.6)),
        (144, 32, (6.4, 6.5), (58.5, 58.7)),
    ],
)
def test_the_papers_own_count_prints_its_figures(
    tokens: int, layers: int, teraflops: tuple[float, float], percent: tuple[float, float]
) -> None:
    selections = (Selection(layer_idx=1, count=tokens),) if tokens < 576 else ()
    runs = tuple(idx < layers for idx in range(32))
    plan = Plan(strategy="x", num_visual=576, runs=runs, selections=selections)
    assert teraflops[0] <= par_paper_flops(LLAVA_1_5_7B, plan) / 1e12 <= teraflops[1]
    assert percent[0] <= 100 * par_paper_ratio(LLAVA_1_5_7B, plan) <= percent[1]
