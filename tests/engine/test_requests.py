"""What the runner refuses before anything is computed, and which strategy it takes by default."""

from __future__ import annotations

import pytest

from allrounder.core import SamplingParams
from allrounder.core.budget import Budget, Counts, FlopsShare, Quality
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.planning.planner import CalibrationUse
from allrounder.engine.scheduling.request import EngineRequest
from allrounder.errors import AllrounderError, EngineOutOfMemory, RouterMismatch
from allrounder.models.transformers import TransformersAdapter
from allrounder.router.weights import LoadedRouter
from tests.engine.driving import answers
from tests.tiny import chat_request


@pytest.fixture
def bare(adapter: TransformersAdapter) -> ModelRunner:
    """A model without a router."""
    return ModelRunner(adapter)


@pytest.mark.parametrize(
    ("form", "strategy", "code", "param"),
    [
        (FlopsShare(share=0.01), None, "budget_too_small", "budget"),
        (FlopsShare(share=0.7), "magic", "invalid_field", "budget.strategy"),
        (FlopsShare(share=0.7), "par", "invalid_field", "budget.strategy"),
        (FlopsShare(share=0.7), "shortgpt", "invalid_field", "budget.strategy"),
        (Counts(layers=4), None, "invalid_field", "budget.layers"),
        (Quality(loyalty=0.9), None, "invalid_field", "budget.quality"),
        (Quality(loyalty=0.9), "fastv", "invalid_field", "budget.strategy"),
        (Quality(loyalty=0.9), "par", "invalid_field", "budget.strategy"),
    ],
)
def test_what_a_model_without_a_router_cannot_do_is_refused_by_name(
    bare: ModelRunner, form: Budget, strategy: str | None, code: str, param: str
) -> None:
    with pytest.raises(AllrounderError) as caught:
        bare.prepare(chat_request(form=form, strategy=strategy))
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, code, param)


def test_a_model_without_a_router_prunes_by_fastv(bare: ModelRunner) -> None:
    request = chat_request(form=FlopsShare(share=0.7))
    assert answers(bare, [request])[request.id].plan.strategy == "fastv"


def test_with_a_router_par_is_the_default_and_is_named(runner: ModelRunner) -> None:
    request = chat_request(form=FlopsShare(share=0.7))
    plan = answers(runner, [request])[request.id].plan
    assert plan.strategy == "par"
    assert plan.router == runner.capabilities().router is not None


def test_a_quality_is_served_by_the_cheapest_size_that_promises_it(runner: ModelRunner) -> None:
    requests = [
        chat_request(1, id=str(quality), form=Quality(loyalty=quality))
        for quality in (0.55, 0.87, 0.89, 1.0)
    ]
    found = answers(runner, requests)
    plans = [found[request.id].plan for request in requests]
    assert [plan.loyalty for plan in plans] == pytest.approx([0.57, 0.88, 1.0, 1.0])
    assert [plan.num_layers_run for plan in plans] == [3, 6, 6, 6]
    assert [plan.num_kept for plan in plans] == [7, 7, 64, 64]
    for request in requests:
        result = found[request.id]
        assert result.cost.prefill_ratio <= result.budget_limit <= 1


def test_the_operator_says_how_far_a_promise_lies_under_the_mean(
    adapter: TransformersAdapter, router: LoadedRouter
) -> None:
    request = chat_request(form=Quality(loyalty=0.89))
    for margin, kept in ((0.0, 7), (1.0, 64)):
        runner = ModelRunner(adapter, router, calibration_use=CalibrationUse(quality_margin=margin))
        assert runner.prepare(request).allocation.plan.num_kept == kept


def _with_loyalty(router: LoadedRouter, mean: tuple[tuple[float, ...], ...] | None) -> LoadedRouter:
    calibration = router.manifest.calibration
    assert calibration is not None
    assert calibration.loyalty is not None
    loyalty = mean and calibration.loyalty.model_copy(update={"mean": mean})
    changed = calibration.model_copy(update={"loyalty": loyalty})
    return LoadedRouter(
        router._network, router.manifest.model_copy(update={"calibration": changed})
    )


def test_a_share_of_flops_may_be_split_by_loyalty(
    adapter: TransformersAdapter, router: LoadedRouter
) -> None:
    likes_skips = _with_loyalty(router, ((0.5, 0.5), (0.9, 0.9)))
    request = chat_request(form=FlopsShare(share=0.6))
    skips = [
        ModelRunner(adapter, likes_skips, calibration_use=use)
        .prepare(request)
        .allocation.num_skipped
        for use in (CalibrationUse(), CalibrationUse(split_by="loyalty"))
    ]
    assert skips == [0, 3]


def test_a_split_by_loyalty_that_was_never_measured_is_refused_at_start(
    adapter: TransformersAdapter, router: LoadedRouter
) -> None:
    with pytest.raises(RouterMismatch, match="without loyalty"):
        ModelRunner(
            adapter,
            _with_loyalty(router, None),
            calibration_use=CalibrationUse(split_by="loyalty"),
        )


def test_a_prompt_that_is_too_long_is_refused_naming_the_field(runner: ModelRunner) -> None:
    with pytest.raises(AllrounderError) as caught:
        runner.prepare(chat_request(question="long " * 200))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "question")
    with pytest.raises(AllrounderError) as caught:
        runner.prepare(chat_request(sampling=SamplingParams(max_tokens=500)))
    assert caught.value.param == "max_tokens"


def test_an_answer_that_nobody_bounded_is_as_long_as_there_is_room(
    adapter: TransformersAdapter,
) -> None:
    runner = ModelRunner(adapter)
    limit = adapter.geometry.max_positions
    request = chat_request(sampling=SamplingParams(max_tokens=limit, is_open_ended=True))
    prepared = runner.prepare(request)
    num_rows = len(prepared.prompt.token_ids)
    assert prepared.request.sampling.max_tokens == limit - num_rows
    demand = prepared.demand
    tight = ModelRunner(adapter, kv_bytes_limit=demand.kv_bytes(3))
    assert tight.prepare(request).request.sampling.max_tokens == 3
    with pytest.raises(EngineOutOfMemory):
        ModelRunner(adapter, kv_bytes_limit=demand.kv_bytes(0)).prepare(request)


def test_a_request_that_does_not_fit_even_alone_is_refused(adapter: TransformersAdapter) -> None:
    small = ModelRunner(adapter, kv_bytes_limit=1000)
    with pytest.raises(AllrounderError) as caught:
        small.prepare(chat_request())
    assert (caught.value.status, caught.value.code) == (503, "engine_oom")


def test_sampling_repeats_with_its_seed_whatever_shares_the_batch(runner: ModelRunner) -> None:
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=11)
    request = chat_request(4, sampling=params)
    crowd = [chat_request(seed, sampling=SamplingParams(max_tokens=6)) for seed in range(5, 8)]
    alone = answers(runner, [request])[request.id].answer
    assert answers(runner, [*crowd, request])[request.id].answer == alone


def test_a_broken_image_fails_its_own_request_only(
    runner: ModelRunner, adapter: TransformersAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = chat_request(1), chat_request(2)
    encode = adapter.encode

    def fail_on_bad(images):
        if bad.images[0] in images:
            raise RuntimeError("one bad image")
        return encode(images)

    monkeypatch.setattr(adapter, "encode", fail_on_bad)
    states = [EngineRequest(prepared=runner.prepare(request)) for request in (good, bad)]
    first, second = runner.begin(states)
    assert first is None
    assert isinstance(second, AllrounderError)
    runner.release(states[0])
