"""Names, compositions and options; and each strategy against an independent slow reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from allrounder.core import ModelGeometry
from allrounder.errors import InvalidField
from allrounder.pruning import STRATEGIES as REGISTRY
from allrounder.pruning import make_strategy
from allrounder.pruning.strategy import Context, RouterScores, View, keep_best, label
from tests.cases import STRATEGIES

GEOMETRY = ModelGeometry(
    num_layers=8,
    width=16,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=32,
    vocab_size=50,
    max_positions=512,
)


def _view(**fields: Any) -> View:
    context = Context(
        geometry=GEOMETRY,
        router_candidates=(4, 5, 6, 7),
        block_influence=(0.9, 0.2, 0.5, 0.1, 0.4, 0.05, 0.3, 0.6),
    )
    return View(
        context=context,
        visual_VD=torch.zeros(10, 16),
        question_QD=torch.zeros(3, 16),
        seed=7,
        **fields,
    )


def test_every_registered_strategy_has_a_case() -> None:
    tested = {part for case in STRATEGIES for part in case.name.split("+")}
    assert tested | {"none", "resize"} == set(REGISTRY)


def test_a_composition_is_known_by_both_names() -> None:
    assert label(make_strategy("fastv+shortgpt")) == "fastv+shortgpt"


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [
        ("magic", {}, "budget.strategy"),
        ("fastv+magic", {}, "budget.strategy"),
        ("shortgpt+fastv", {}, "budget.strategy"),
        ("fastv+shortgpt+par", {}, "budget.strategy"),
        ("fastv", {"depth": 2}, "budget.options.depth"),
        ("fastv", {"layer": "two"}, "budget.options.layer"),
        ("fastv", {"layer": True}, "budget.options.layer"),
        ("random", {"layer": 2}, "budget.options.layer"),
        ("", {}, "budget.strategy"),
    ],
)
def test_a_wrong_name_or_option_is_refused_by_field(
    name: str, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        make_strategy(name, options)
    assert caught.value.param == param


@pytest.mark.parametrize("layer", [0, 8, -1])
def test_fastv_refuses_a_layer_that_the_model_lacks(layer: int) -> None:
    with pytest.raises(InvalidField) as caught:
        make_strategy("fastv", {"layer": layer}).check(_view().context)
    assert caught.value.param == "budget.options.layer"


@pytest.mark.parametrize("name", ["par", "par-token", "par-layer", "fastv+par-layer"])
def test_router_strategies_need_a_router(name: str) -> None:
    with pytest.raises(InvalidField, match="needs a router"):
        make_strategy(name).check(Context(geometry=GEOMETRY))


def test_shortgpt_needs_a_calibration() -> None:
    with pytest.raises(InvalidField, match="calibrated"):
        make_strategy("shortgpt").check(Context(geometry=GEOMETRY))


def test_ties_go_to_the_lower_index() -> None:
    assert keep_best(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


def test_fastv_is_the_head_mean_of_the_last_rows_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 1, 10, generator=generator)
    kept = make_strategy("fastv").select(_view(attention={1: attention}), 4).tolist()
    means = [math.fsum(attention[h, 0, v].item() for h in range(2)) / 2 for v in range(10)]
    expected = sorted(sorted(range(10), key=lambda v: -means[v])[:4])
    assert kept == expected


def test_shortgpt_skips_the_layers_of_least_influence() -> None:
    strategy = make_strategy("shortgpt")
    view = _view()
    allowed = strategy.candidates(view.context)
    assert allowed == (1, 2, 3, 4, 5, 6, 7)
    assert strategy.skip(view, allowed, 3) == (1, 3, 5)


def test_par_keeps_the_best_tokens_and_skips_the_worst_layers() -> None:
    scores = RouterScores(
        token_logits=torch.tensor([0.0, 3, 1, 2, -1, 9, 8, 7, -5, 4]),
        layer_logits=torch.tensor([0.5, -2.0, 1.0, -3.0]),
    )
    view, strategy = _view(router=scores), make_strategy("par")
    assert strategy.select(view, 4).tolist() == [5, 6, 7, 9]
    assert strategy.skip(view, (4, 5, 6, 7), 2) == (5, 7)
    assert strategy.skip(view, (4, 6), 1) == (4,)


def test_random_depends_on_the_request_alone() -> None:
    strategy = make_strategy("random")
    first, again = strategy.select(_view(), 5), strategy.select(_view(), 5)
    assert first.tolist() == again.tolist()
    draws = {
        tuple(strategy.select(View(**{**vars(_view()), "seed": seed}), 5).tolist())
        for seed in range(20)
    }
    assert len(draws) > 10
