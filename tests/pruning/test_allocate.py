"""No plan ever exceeds its budget, whatever the geometry, prompt, strategy or choice."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allrounder.core import BudgetRequest, ModelGeometry, Plan, PromptShape
from allrounder.core.budget import Budget, Counts, FlopsShare, Quality
from allrounder.cost import cost_of
from allrounder.errors import AllrounderError, BudgetTooSmall, InvalidField
from allrounder.pruning import make_strategy
from allrounder.pruning.allocate import (
    Allocation,
    Allocator,
    CalibratedFrontier,
    CalibratedLoyalty,
    PublishedFrontier,
    Split,
    settle,
)
from allrounder.pruning.strategy import Context
from allrounder.router.network import RouterConfig, router_flops
from tests.cases import BUDGETS, STRATEGIES, BudgetCase

MANY = 2000


def _context(geometry: ModelGeometry) -> Context:
    return Context(
        geometry=geometry,
        router_candidates=tuple(range(geometry.num_layers // 2, geometry.num_layers)),
        block_influence=tuple(0.1 + idx * 7 % 5 for idx in range(geometry.num_layers)),
    )


LOYALTY = CalibratedLoyalty(
    skip_ratios=(0.0, 0.25, 0.5),
    token_ratios=(0.05, 0.25, 1.0),
    promised=((0.6, 0.96, 1.0), (0.55, 0.9, 0.93), (0.2, 0.5, 0.6)),
)


def _allocator(
    geometry: ModelGeometry,
    shape: PromptShape,
    name: str,
    *,
    calibrated: bool = False,
    loyalty: CalibratedLoyalty | None = LOYALTY,
    min_tokens: int = 1,
) -> Allocator:
    config = RouterConfig.for_model(model_width=geometry.width, num_layers=geometry.num_layers)
    frontier = CalibratedFrontier(
        skip_ratios=(0.0, 0.25, 0.5),
        token_ratios=(0.05, 0.25, 1.0),
        harm=((0.9, 0.1, 0.0), (1.0, 0.15, 0.05), (1.5, 0.6, 0.5)),
    )
    return Allocator(
        context=_context(geometry),
        strategy=make_strategy(name),
        shape=shape,
        frontier=frontier if calibrated else PublishedFrontier(),
        router_flops=lambda s: router_flops(
            config, num_visual=s.num_visual, num_question=s.num_question
        ),
        loyalty=loyalty,
        min_tokens=min_tokens,
    )


def _request(form: Budget) -> BudgetRequest:
    return BudgetRequest(form=form, requested=None)


def _settled(allocation: Allocation, draw: random.Random) -> Plan:
    """Any choice a strategy could make within the allocation."""
    plan = allocation.plan
    skipped = draw.sample(allocation.allowed, allocation.num_skipped)
    arriving: Sequence[int] = range(plan.num_visual)
    for layer_idx, count in plan.points:
        arriving = sorted(draw.sample(arriving, count))
        plan = plan.with_kept(layer_idx, tuple(arriving))
    return settle(plan, skipped=tuple(skipped))


geometries = st.builds(
    ModelGeometry,
    num_layers=st.integers(4, 48),
    width=st.sampled_from([64, 128, 512, 4096]),
    num_heads=st.sampled_from([4, 8, 32]),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([16, 64, 128]),
    mlp_width=st.sampled_from([172, 352, 11008]),
    vocab_size=st.sampled_from([1000, 32000]),
    max_positions=st.just(4096),
)
shapes = st.builds(
    PromptShape,
    num_text=st.integers(1, 300),
    visual_per_image=st.lists(st.integers(1, 900), min_size=1, max_size=3).map(tuple),
    num_question=st.integers(1, 300),
)
names = st.sampled_from(sorted({case.name for case in STRATEGIES}))


@pytest.mark.timeout(60)
@settings(max_examples=MANY)
@given(geometries, shapes, names, st.floats(0.01, 1.0), st.booleans(), st.integers(0, 2**32))
def test_no_plan_exceeds_its_share(
    geometry: ModelGeometry,
    shape: PromptShape,
    name: str,
    share: float,
    calibrated: bool,
    seed: int,
) -> None:
    form = FlopsShare(share=share)
    allocator = _allocator(geometry, shape, name, calibrated=calibrated)
    try:
        allocation = allocator.allocate(_request(form))
    except BudgetTooSmall:
        assert allocator.smallest_share() > share
        return
    plan = _settled(allocation, random.Random(seed))
    cost = cost_of(geometry, shape, plan)
    assert form.allows(cost)
    assert cost.prefill_ratio <= allocation.limit
    assert cost.saved >= 0
    assert plan.num_kept >= 1
    assert cost_of(geometry, shape, plan, num_generated=50).saved >= 0


@settings(max_examples=300)
@given(geometries, shapes, names, st.integers(1, 900), st.integers(2, 48), st.integers(0, 2**32))
def test_no_plan_exceeds_its_counts(
    geometry: ModelGeometry,
    shape: PromptShape,
    name: str,
    tokens: int,
    layers: int,
    seed: int,
) -> None:
    form = Counts(tokens=tokens, layers=layers)
    try:
        allocation = _allocator(geometry, shape, name).allocate(_request(form))
    except InvalidField as err:
        refused = err.param
    else:
        refused = None
    if refused is not None:
        assert refused in ("budget.tokens", "budget.layers")
        return
    plan = _settled(allocation, random.Random(seed))
    cost = cost_of(geometry, shape, plan)
    assert plan.is_dense or form.allows(cost)
    assert cost.prefill_ratio <= allocation.limit
    assert cost.saved >= 0


GEOMETRY = ModelGeometry(
    num_layers=16,
    width=128,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=352,
    vocab_size=1024,
    max_positions=2048,
)
SHAPE = PromptShape(num_text=20, visual_per_image=(196,), num_question=16)


@pytest.mark.parametrize("name", ["random", "fastv", "par", "par-token", "fastv+shortgpt"])
def test_a_plan_spends_most_of_what_it_may(name: str) -> None:
    allocator = _allocator(GEOMETRY, SHAPE, name, calibrated=True)
    smallest = allocator.smallest_share()
    shares = [s / 100 for s in range(5, 100) if s / 100 > smallest]
    spent = [
        cost_of(
            GEOMETRY, SHAPE, allocator.allocate(_request(FlopsShare(share=share))).plan
        ).prefill_ratio
        / share
        for share in shares
    ]
    assert statistics.mean(spent) >= 0.85


@pytest.mark.parametrize("case", BUDGETS, ids=lambda case: str(case.tighter))
def test_a_looser_value_allows_all_that_a_tighter_one_did(case: BudgetCase) -> None:
    geometry = replace(GEOMETRY, num_layers=6)
    allocator = _allocator(geometry, SHAPE, "par")
    tight, loose = (
        cost_of(geometry, SHAPE, allocator.allocate(_request(form)).plan)
        for form in (case.tighter, case.looser)
    )
    assert case.tighter.allows(tight)
    assert case.looser.allows(tight)
    assert case.looser.allows(loose)
    assert not case.tighter.allows(loose)
    dense = Plan.dense(num_layers=geometry.num_layers, num_visual=SHAPE.num_visual)
    assert not case.tighter.allows(cost_of(geometry, SHAPE, dense))


def test_the_smallest_possible_budget_is_named_and_possible() -> None:
    allocator = _allocator(GEOMETRY, SHAPE, "par")
    with pytest.raises(BudgetTooSmall, match="smallest possible is") as caught:
        allocator.allocate(_request(FlopsShare(share=0.001)))
    named = float(caught.value.message.rsplit(" ", 1)[-1])
    plan = allocator.allocate(_request(FlopsShare(share=named))).plan
    assert plan.num_kept == 1


def test_a_floor_of_tokens_is_kept() -> None:
    allocator = Allocator(
        context=_context(GEOMETRY),
        strategy=make_strategy("random"),
        shape=SHAPE,
        frontier=PublishedFrontier(),
        router_flops=lambda _: 0,
        min_tokens=100,
    )
    with pytest.raises(BudgetTooSmall):
        allocator.allocate(_request(FlopsShare(share=0.3)))
    assert allocator.allocate(_request(FlopsShare(share=0.7))).plan.num_kept >= 100


def test_protected_layers_are_never_offered() -> None:
    geometry = replace(GEOMETRY, num_layers=8, protected_layers=frozenset({4, 5}))
    allocation = _allocator(geometry, SHAPE, "par").allocate(_request(Counts(layers=6)))
    assert allocation.allowed == (6, 7)


@pytest.mark.parametrize(
    ("name", "form", "param"),
    [
        ("random", Counts(layers=17), "budget.layers"),
        ("random", Counts(layers=3), "budget.layers"),
        ("fastv", Counts(layers=12), "budget.layers"),
        ("shortgpt", Counts(tokens=12), "budget.tokens"),
    ],
)
def test_counts_that_cannot_be_met_are_refused_by_name(name: str, form: Counts, param: str) -> None:
    with pytest.raises(AllrounderError) as caught:
        _allocator(GEOMETRY, SHAPE, name).allocate(_request(form))
    assert caught.value.status == 422
    assert caught.value.param == param


@st.composite
def _loyalties(draw: st.DrawFn) -> CalibratedLoyalty:
    """Any monotone grid, plateaus among them."""
    shares = st.sampled_from([0.0, 0.3, 0.8, 0.9, 0.95, 0.98, 1.0]) | st.floats(0, 1)
    skips = draw(st.sampled_from([(0.0, 0.5), (0.0, 0.125, 0.25, 0.375, 0.5), (0.0, 0.1)]))
    tokens = draw(st.sampled_from([(0.01, 1.0), (0.1, 0.2, 0.5, 0.9), (0.3, 0.31, 1.0)]))
    size = len(tokens)
    rows = draw(
        st.lists(
            st.lists(shares, min_size=size, max_size=size),
            min_size=len(skips),
            max_size=len(skips),
        )
    )
    return CalibratedLoyalty.under(
        skip_ratios=skips,
        token_ratios=tokens,
        mean=rows,
        standard_error=[[0.0] * size] * len(skips),
    )


small_shapes = st.builds(
    PromptShape,
    num_text=st.integers(1, 60),
    visual_per_image=st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple),
    num_question=st.integers(1, 60),
)
router_names = st.sampled_from(["par", "par-token", "par-layer", "par-token+par-layer"])
qualities = st.sampled_from([0.3, 0.8, 0.9, 0.95, 0.98, 1.0]) | st.floats(0.01, 1)


@pytest.mark.timeout(60)
@settings(max_examples=300)
@given(
    geometries, small_shapes, router_names, _loyalties(), qualities, st.integers(1, 60), st.data()
)
def test_a_quality_gets_the_cheapest_of_all_sizes_that_promise_it(
    geometry: ModelGeometry,
    shape: PromptShape,
    name: str,
    loyalty: CalibratedLoyalty,
    quality: float,
    min_tokens: int,
    data: st.DataObject,
) -> None:
    form = Quality(loyalty=quality)
    allocator = _allocator(geometry, shape, name, loyalty=loyalty, min_tokens=min_tokens)
    allocation = allocator.allocate(_request(form))
    plan = allocation.plan
    assert form.allows(cost_of(geometry, shape, plan))
    cheapest = 1.0
    for tokens, skips in _sizes(allocator, geometry, shape, name, min_tokens):
        split = Split(token_ratio=tokens / shape.num_visual, skip_ratio=skips / geometry.num_layers)
        if quality < 1 and loyalty.at(split) >= quality:
            counts = Counts(tokens=tokens, layers=geometry.num_layers - skips)
            cheapest = min(cheapest, allocator.allocate(_request(counts)).limit)
    assert allocation.limit == cheapest
    assert plan.is_dense == (cheapest == 1)
    assert plan.num_kept >= min(min_tokens, shape.num_visual)
    draw = random.Random(data.draw(st.integers(0, 2**32)))
    assert cost_of(geometry, shape, _settled(allocation, draw)).prefill_ratio <= allocation.limit
    assert allocator.allocate(_request(form)) == allocation


def _sizes(
    allocator: Allocator, geometry: ModelGeometry, shape: PromptShape, name: str, min_tokens: int
) -> list[tuple[int, int]]:
    """Every size on offer: all token counts, and layer counts in sixteenths of the depth."""
    candidates = geometry.num_layers - geometry.num_layers // 2
    step = max(1, geometry.num_layers // 16)
    skips = (
        sorted({*range(0, candidates + 1, step), candidates})
        if "layer" in name or (name == "par")
        else [0]
    )
    first = min(min_tokens, shape.num_visual) if name != "par-layer" else shape.num_visual
    return [(tokens, skip) for tokens in range(first, shape.num_visual + 1) for skip in skips]


@pytest.mark.timeout(60)
@settings(max_examples=150)
@given(geometries, shapes, router_names, _loyalties(), qualities, qualities)
def test_more_quality_never_costs_less(
    geometry: ModelGeometry,
    shape: PromptShape,
    name: str,
    loyalty: CalibratedLoyalty,
    one: float,
    other: float,
) -> None:
    allocator = _allocator(geometry, shape, name, loyalty=loyalty)
    low, high = (
        allocator.allocate(_request(Quality(loyalty=quality))).limit
        for quality in sorted((one, other))
    )
    assert low <= high


@pytest.mark.parametrize("name", ["none", "fastv", "random+shortgpt", "par"])
def test_full_quality_is_dense_whatever_the_strategy_and_calibration(name: str) -> None:
    allocation = _allocator(GEOMETRY, SHAPE, name, loyalty=None).allocate(
        _request(Quality(loyalty=1.0))
    )
    assert allocation.plan.is_dense
    assert (allocation.plan.loyalty, allocation.limit) == (1.0, 1.0)


def test_quality_without_pruning_is_dense() -> None:
    allocator = _allocator(GEOMETRY, SHAPE, "none", loyalty=None)
    assert allocator.allocate(_request(Quality(loyalty=0.5))).plan.is_dense


@pytest.mark.parametrize(
    ("name", "loyalty", "named", "param", "advice"),
    [
        ("fastv", None, True, "budget.strategy", "take par"),
        ("fastv", LOYALTY, True, "budget.strategy", "take par"),
        ("fastv+par-layer", LOYALTY, True, "budget.strategy", "take par"),
        ("par-token+shortgpt", LOYALTY, True, "budget.strategy", "take par"),
        ("fastv", None, False, "budget.quality", "train one"),
        ("par", None, False, "budget.quality", "train it again"),
        ("par", None, True, "budget.quality", "train it again"),
    ],
)
def test_quality_without_its_calibration_is_refused_with_advice(
    name: str, loyalty: CalibratedLoyalty | None, named: bool, param: str, advice: str
) -> None:
    request = BudgetRequest(
        form=Quality(loyalty=0.9), requested=None, strategy=name if named else None
    )
    with pytest.raises(InvalidField, match=advice) as caught:
        _allocator(GEOMETRY, SHAPE, name, loyalty=loyalty).allocate(request)
    assert (caught.value.status, caught.value.param) == (422, param)
