"""Strategies that choose before the decoder: each against its formula in slow float64 loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from allrounder.core import ModelGeometry, TokenGrid
from allrounder.errors import InvalidField
from allrounder.pruning import make_strategy
from allrounder.pruning.per_image import quotas
from allrounder.pruning.pooling import cells
from allrounder.pruning.strategy import Context, View
from allrounder.pruning.vision_facts import VisionFeatures
from tests.pruning import slow

GEOMETRY = ModelGeometry(
    num_layers=8,
    width=24,
    num_heads=2,
    num_kv_heads=2,
    head_dim=12,
    mlp_width=32,
    vocab_size=50,
    max_positions=512,
)
NUM_VISUAL, NUM_WORDS, NUM_HEADS = 30, 4, 2
COUNTS = (1, 2, 7, 13, 20)
SUBSETS = ("divprune", "mmtok", "cdpruner")
MERGING = ("visionzip", "prumerge", "pool")


def _view(seed: int = 0, num_visual: int = NUM_VISUAL, **fields: Any) -> View:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    vision = VisionFeatures(
        attention_HV=draw(NUM_HEADS, num_visual).softmax(-1),
        keys_VE=draw(num_visual, 8),
        features_VF=draw(num_visual, 10),
    )
    return View(
        context=Context(geometry=GEOMETRY),
        visual_VD=draw(num_visual, GEOMETRY.width) + 0.3,
        question_QD=draw(NUM_WORDS, GEOMETRY.width),
        seed=seed,
        vision=vision,
        **fields,
    )


def _lists(tensor: Tensor) -> list[list[float]]:
    return tensor.double().tolist()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", range(3))
def test_divprune_is_greedy_max_min_diversity(seed: int, count: int) -> None:
    view = _view(seed)
    kept = make_strategy("divprune").select(view, count).tolist()
    assert kept == slow.divprune(_lists(view.visual_VD), count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_mmtok_is_greedy_coverage_of_words_and_patches(alpha: float, count: int) -> None:
    view = _view()
    assert view.vision is not None
    kept = make_strategy("mmtok", {"alpha": alpha}).select(view, count).tolist()
    assert kept == slow.mmtok(
        _lists(view.visual_VD),
        _lists(view.question_QD),
        _lists(view.vision.features_VF),
        count,
        alpha=alpha,
    )


@pytest.mark.parametrize("count", [1, 2, 7, 13])
@pytest.mark.parametrize(("weight", "negative"), [(0.5, False), (0.0, False), (0.9, True)])
def test_cdpruner_grows_the_determinant_most(weight: float, negative: bool, count: int) -> None:
    view = _view()
    options = {"relevance_weight": weight, "negative": negative}
    kept = make_strategy("cdpruner", options).select(view, count).tolist()
    assert kept == slow.cdpruner(
        _lists(view.visual_VD), _lists(view.question_QD), count, weight=weight, negative=negative
    )


def test_cdpruner_takes_the_most_relevant_once_diversity_is_used_up() -> None:
    view = _view()
    same = replace(view, visual_VD=view.visual_VD[:1].expand(NUM_VISUAL, -1))
    assert make_strategy("cdpruner").select(same, 4).tolist() == [0, 1, 2, 3]
    extreme = make_strategy("cdpruner", {"relevance_weight": 0.999})
    assert len(set(extreme.select(view, NUM_VISUAL - 1).tolist())) == NUM_VISUAL - 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("seed", range(3))
def test_visionzip_keeps_the_attended_and_merges_the_rest(seed: int, count: int) -> None:
    view = _view(seed)
    assert view.vision is not None
    choice = make_strategy("visionzip").choose(view, count)
    rows, weights = slow.visionzip(
        _lists(view.vision.attention_HV), _lists(view.vision.keys_VE), count
    )
    assert choice.rows.tolist() == rows
    torch.testing.assert_close(choice.weights, torch.tensor(weights))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("neighbours", [0, 5, 32])
def test_prumerge_adds_neighbours_and_sums_what_is_dropped(neighbours: int, count: int) -> None:
    view = _view()
    assert view.vision is not None
    choice = make_strategy("prumerge", {"neighbours": neighbours}).choose(view, count)
    rows, weights = slow.prumerge(
        _lists(view.vision.attention_HV),
        _lists(view.vision.keys_VE),
        count,
        neighbours=neighbours,
    )
    assert choice.rows.tolist() == rows
    torch.testing.assert_close(choice.weights, torch.tensor(weights))


def test_pool_is_the_librarys_average_pooling_where_the_count_makes_a_regular_grid() -> None:
    grid = TokenGrid(rows=8, cols=12)
    view = _view(num_visual=96, grids=(grid,))
    choice = make_strategy("pool").choose(view, 24)
    assert choice.weights is not None
    picture = view.visual_VD.T.unflatten(1, (8, 12))
    pooled = torch.nn.functional.avg_pool2d(picture, 2).flatten(1).T
    torch.testing.assert_close(choice.weights @ view.visual_VD, pooled)
    assert choice.rows.tolist() == [
        row * 12 + col for row in (0, 2, 4, 6) for col in range(0, 12, 2)
    ]


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_pools_cells_are_disjoint_cover_the_grid_and_hold_their_middle(
    rows: int, cols: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, rows * cols))
    grid = TokenGrid(rows=rows, cols=cols, offset=3)
    found = list(cells(grid, count))
    assert len(found) == count
    assert all(middle in members for middle, members in found)
    middles = [middle for middle, _ in found]
    assert middles == sorted(set(middles))
    every = sorted(member for _, members in found for member in members)
    assert every == list(range(3, 3 + rows * cols))


def test_pool_keeps_tokens_outside_the_grid_in_runs() -> None:
    grid = TokenGrid(rows=2, cols=5, offset=10)
    choice = make_strategy("pool").choose(_view(grids=(grid,)), 6)
    weights = choice.weights
    assert weights is not None
    assert choice.rows.tolist() == sorted(choice.rows.tolist())
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    assert (weights > 0).sum(0).tolist() == [1] * NUM_VISUAL
    in_grid = [bool(row[10:20].any()) for row in weights]
    assert in_grid == [False, False, True, True, False, False]


@pytest.mark.parametrize("name", [*SUBSETS, *MERGING])
def test_each_image_is_chosen_from_alone_by_its_quota(name: str) -> None:
    sizes = (12, 3, 15)
    view = _view(visual_per_image=sizes)
    strategy = make_strategy(name)
    choice = strategy.choose(view, 10)
    assert len(choice.rows) == 10
    start, at = 0, 0
    for size, quota in zip(sizes, quotas(sizes, 10), strict=True):
        assert view.vision is not None
        alone = replace(
            view,
            visual_VD=view.visual_VD[start : start + size],
            vision=view.vision.part(start, start + size),
            visual_per_image=(size,),
        )
        expected = strategy.choose(alone, quota)
        assert choice.rows[at : at + quota].tolist() == (expected.rows + start).tolist()
        if choice.weights is not None:
            assert expected.weights is not None
            block = choice.weights[at : at + quota, start : start + size]
            torch.testing.assert_close(block, expected.weights)
            assert float(choice.weights[at : at + quota].abs().sum()) == pytest.approx(
                float(expected.weights.abs().sum())
            )
        start, at = start + size, at + quota


@pytest.mark.parametrize("name", [*SUBSETS, *MERGING])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_tokens_than_images_still_leave_the_count(name: str, count: int) -> None:
    choice = make_strategy(name).choose(_view(visual_per_image=(6, 6, 9, 9)), count)
    assert len(choice.rows) == count
    assert (choice.weights is not None) == (name in MERGING)
    if choice.weights is not None:
        assert choice.weights.shape == (count, NUM_VISUAL)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=8), st.integers(1, 3000))
def test_quotas_fill_the_count_in_proportion(sizes: list[int], count: int) -> None:
    total = sum(sizes)
    shares = quotas(sizes, count)
    assert sum(shares) == min(count, total)
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if total and count >= sum(size > 0 for size in sizes):
        assert all(share >= 1 for share, size in zip(shares, sizes, strict=True) if size)
        room = len(sizes)
        fair = [min(count, total) * size / total for size in sizes]
        assert all(abs(share - ideal) <= room for share, ideal in zip(shares, fair, strict=True))
    assert shares == quotas(sizes, count)


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [
        ("cdpruner", {"relevance_weight": 1.0}, "budget.options.relevance_weight"),
        ("mmtok", {"text_temperature": 0.0}, "budget.options.text_temperature"),
        ("mmtok", {"alpha": -1.0}, "budget.options.alpha"),
        ("visionzip", {"contextual_ratio": 1.0}, "budget.options.contextual_ratio"),
        ("prumerge", {"neighbours": -1}, "budget.options.neighbours"),
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(
    name: str, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        make_strategy(name, options).check(Context(geometry=GEOMETRY))
    assert caught.value.param == param
