"""Off is unmodified, dropped is masked, a batch is its singles: for every strategy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allrounder.core import ChatRequest, SamplingParams
from allrounder.core.budget import Counts, FlopsShare, Quality
from allrounder.cost import cost_of, kv_bytes_per_row
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.cases import STRATEGIES, StrategyCase
from tests.engine.driving import answers, begin, recorded, whole
from tests.families.reference import Reference
from tests.tiny import NUM_VISUAL, chat_request

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def reference(llava_folder: Path) -> Reference:
    return Reference(llava_folder)


def _request(case: StrategyCase, seed: int = 0) -> ChatRequest:
    tokens = 20 if case.prunes_tokens else None
    layers = 5 if case.prunes_layers else None
    form = Counts(tokens=tokens, layers=layers)
    return chat_request(
        seed, form=form, strategy=case.name, options=case.options, id=f"{case}-{seed}"
    )


MASKS = [case for case in STRATEGIES if not (case.merges or case.renumbers)]


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_what_is_dropped_equals_what_is_masked(
    case: StrategyCase, runner: ModelRunner, adapter: TransformersAdapter, reference: Reference
) -> None:
    request = _request(case)
    sequence, ours = recorded(runner, adapter, request)
    theirs = reference.logits(request, sequence.token_ids, sequence.plan)
    assert not sequence.plan.is_dense
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_batch_of_mixed_plans_equals_its_singles(runner: ModelRunner) -> None:
    requests = [_request(case, seed) for seed, case in enumerate(STRATEGIES)]
    requests += [chat_request(77), chat_request(78, form=FlopsShare(share=0.55))]
    requests += [chat_request(79, form=Quality(loyalty=0.85))]
    together = answers(runner, requests)
    for request in requests:
        alone = answers(runner, [request])[request.id]
        assert together[request.id].plan == alone.plan
        assert together[request.id].answer == alone.answer
        assert together[request.id].cost == alone.cost


@pytest.mark.parametrize("share", [0.8, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_counts_set_on_the_way_stay_within_flops_and_memory_of_the_bound(
    runner: ModelRunner, share: float, seed: int
) -> None:
    request = chat_request(
        seed,
        form=FlopsShare(share=share),
        strategy="autoprune",
        options={"k0": 1.5, "gamma": 20.0 * seed},
    )
    (sequence,) = begin(runner, [request])
    bound = sequence.plan.points
    runner.step(whole([sequence]))
    assert sequence.kv.bytes_held <= sequence.prepared.demand.kv_bytes(1)
    assert (sequence.plan.points == bound) == (seed == 0)
    cost = cost_of(runner.capabilities().geometry, sequence.prepared.shape, sequence.plan)
    assert cost.prefill_ratio <= share
    runner.release(sequence.state)


def test_requests_may_join_and_leave_between_steps(runner: ModelRunner) -> None:
    first, second = (
        chat_request(1, sampling=SamplingParams(max_tokens=9)),
        chat_request(2, form=FlopsShare(share=0.5), strategy="par"),
    )
    alone = {r.id: answers(runner, [r])[r.id].answer for r in (first, second)}
    (early,) = begin(runner, [first])
    ended = {}
    for _ in range(3):
        runner.step(whole([early]))
    live = [early, *begin(runner, [second])]
    while live:
        for outcome in runner.step(whole(live)):
            if outcome.result is not None:
                ended[outcome.request.id] = outcome.result.answer
        live = [sequence for sequence in live if sequence.request.id not in ended]
    assert ended == alone


@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_skipped_layers_and_dropped_tokens_hold_no_memory(
    case: StrategyCase, runner: ModelRunner, adapter: TransformersAdapter
) -> None:
    request = _request(case)
    (sequence,) = begin(runner, [request])
    runner.step(whole([sequence]))
    plan, shape = sequence.plan, sequence.prepared.shape
    assert sequence.kv.layers == tuple(idx for idx, runs in enumerate(plan.runs) if runs)
    rows = sum(shape.num_text + plan.visual_rows(idx) for idx in sequence.kv.layers)
    assert sequence.kv.bytes_used == rows * kv_bytes_per_row(adapter.geometry)
    demand = sequence.prepared.demand
    assert sequence.kv.bytes_held <= demand.kv_bytes(1)
    runner.release(sequence.state)
    assert runner.kv_bytes_held() == 0


@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_budget_1_runs_no_strategy(case: StrategyCase, runner: ModelRunner) -> None:
    request = chat_request(5, strategy=case.name, options=case.options)
    dense = replace(
        request, id="dense", budget=replace(request.budget, strategy="none", options={})
    )
    results = answers(runner, [request, dense])
    result = results[request.id]
    assert result.plan.is_dense
    assert result.cost.router == 0
    assert result.cost.saved == 0
    assert result.answer == results["dense"].answer


@pytest.mark.parametrize("case", STRATEGIES, ids=str)
def test_a_strategy_keeps_order_and_count_and_repeats_itself(
    case: StrategyCase, runner: ModelRunner
) -> None:
    first, again = (answers(runner, [_request(case)])[str(case) + "-0"] for _ in range(2))
    assert first.plan == again.plan
    if case.prunes_tokens:
        assert first.plan.kept == tuple(sorted(set(first.plan.kept or ())))
        assert first.plan.num_kept == len(first.plan.kept or ()) <= 20
        assert first.plan.num_kept == 20 or not case.keeps_count
        assert first.plan.last_selection_layer == case.selection_layer
    else:
        assert first.plan.num_kept == NUM_VISUAL
    assert first.plan.num_layers_run == (5 if case.prunes_layers else 6)


@pytest.mark.parametrize("case", [c for c in STRATEGIES if c.prunes_tokens], ids=str)
def test_one_visual_token_survives(case: StrategyCase, runner: ModelRunner) -> None:
    request = chat_request(form=Counts(tokens=1), strategy=case.name, options=case.options)
    assert answers(runner, [request])[request.id].plan.num_kept == 1


@pytest.mark.parametrize("case", [c for c in STRATEGIES if c.prunes_tokens], ids=str)
def test_a_plan_request_shows_what_a_chat_would_do(case: StrategyCase, runner: ModelRunner) -> None:
    chat = _request(case)
    plan_only = replace(chat, id="plan", plan_only=True)
    results = answers(runner, [chat, plan_only])
    assert results["plan"].plan == results[chat.id].plan
    assert results["plan"].num_generated == 0
