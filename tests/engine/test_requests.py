"""What the runner refuses before anything is computed, and which strategy it takes by default."""

from __future__ import annotations

import pytest

from app.budget import Budget, Counts, FlopsShare
from app.core import SamplingParams
from app.engine.runner import ModelRunner
from app.errors import AllrounderError
from app.models.transformers import TransformersAdapter
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


def test_a_prompt_that_is_too_long_is_refused_naming_the_field(runner: ModelRunner) -> None:
    with pytest.raises(AllrounderError) as caught:
        runner.prepare(chat_request(question="long " * 200))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "question")
    with pytest.raises(AllrounderError) as caught:
        runner.prepare(chat_request(sampling=SamplingParams(max_tokens=500)))
    assert caught.value.param == "max_tokens"


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
    first, second = runner.begin([runner.prepare(request) for request in (good, bad)])
    assert not isinstance(first, AllrounderError)
    assert isinstance(second, AllrounderError)
    runner.release(first)
