"""For every family: dense is `generate`, dropped is masked, a batch is its singles."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from allrounder.core import ChatRequest, SamplingParams
from allrounder.core.budget import Budget, Counts, FlopsShare
from allrounder.engine.execution.runner import ModelRunner
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers, begin, finished, recorded, scheduled
from tests.families.cases import FamilyCase
from tests.families.reference import Reference, assert_same_tokens
from tests.tiny import chat_request, noise_image

pytestmark = pytest.mark.timeout(90)
NUM_PROMPTS = 20
NUM_SHORT = 4


def _request(case: FamilyCase, seed: int, *, num_images: int = 1, **fields: Any) -> ChatRequest:
    """Images of the family's sizes in turn, and a question of random length."""
    draw = random.Random(seed)
    sizes = [case.sizes[(seed + idx) % len(case.sizes)] for idx in range(num_images)]
    images = tuple(
        noise_image(100 * seed + idx, width=width, height=height)
        for idx, (width, height) in enumerate(sizes)
    )
    words = " ".join(draw.choice(["red", "What?", "où", "three", "\n"]) for _ in range(seed + 1))
    fields.setdefault("id", f"{case}-{seed}-{num_images}")
    return chat_request(seed, images=images, question=f"{words} {seed}?", **fields)


def _plans() -> list[tuple[str, Budget]]:
    return [
        ("random", Counts(tokens=7, layers=5)),
        ("fastv", Counts(tokens=5)),
        ("random", FlopsShare(share=0.6)),
        ("pdrop", Counts(tokens=5)),
        ("autoprune", Counts(tokens=6)),
        ("autoprune", FlopsShare(share=0.95)),
    ]


def _mixed() -> list[tuple[str, Budget]]:
    """Plans that may merge too."""
    return [*_plans(), ("llavolta", Counts(tokens=5)), ("llavolta", FlopsShare(share=0.8))]


@pytest.mark.parametrize(
    "seed",
    [
        *range(NUM_SHORT),
        *(pytest.param(seed, marks=pytest.mark.long) for seed in range(NUM_SHORT, NUM_PROMPTS)),
    ],
)
def test_the_dense_plan_is_generate_token_for_token(
    case: FamilyCase, runner: ModelRunner, reference: Reference, seed: int
) -> None:
    num_images = 1 + seed % case.max_images
    request = _request(case, seed, num_images=num_images)
    sequence = finished(runner, request)
    prompt_ids, theirs = reference.generate(request)
    assert list(sequence.prepared.prompt.token_ids) == prompt_ids
    logits = reference.logits(request, theirs, sequence.plan)
    assert_same_tokens(sequence.token_ids, theirs, logits)


@pytest.mark.parametrize(("strategy", "form"), _plans())
@pytest.mark.parametrize("num_images", [1, 2])
def test_what_is_dropped_equals_what_is_masked(
    case: FamilyCase,
    runner: ModelRunner,
    adapter: TransformersAdapter,
    reference: Reference,
    strategy: str,
    form: Budget,
    num_images: int,
) -> None:
    if num_images > case.max_images:
        return
    request = _request(case, 3, num_images=num_images, form=form, strategy=strategy)
    sequence, ours = recorded(runner, adapter, request)
    theirs = reference.logits(request, sequence.token_ids, sequence.plan)
    assert not sequence.plan.is_dense
    assert not set(sequence.plan.skipped_layers) & adapter.geometry.protected_layers
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_batch_of_mixed_plans_equals_its_singles(case: FamilyCase, runner: ModelRunner) -> None:
    requests = [_request(case, seed) for seed in range(3)]
    requests += [
        _request(case, 10 + idx, form=form, strategy=strategy)
        for idx, (strategy, form) in enumerate(_mixed())
    ]
    together = answers(runner, requests)
    for request in requests:
        alone = answers(runner, [request])[request.id]
        assert together[request.id].plan == alone.plan
        assert together[request.id].answer == alone.answer
        assert together[request.id].cost == alone.cost


@pytest.mark.parametrize("form", [FlopsShare(share=1.0), Counts(tokens=7, layers=5)], ids=str)
def test_a_prompt_in_parts_equals_the_whole(
    case: FamilyCase, runner: ModelRunner, form: Budget
) -> None:
    request = _request(case, 3, num_images=min(2, case.max_images), form=form, strategy="random")
    whole_answer = answers(runner, [request])[request.id].answer
    (sequence,) = begin(runner, [request])
    outcomes = runner.step([scheduled(sequence, 11)])
    while not outcomes or outcomes[0].result is None:
        outcomes = runner.step([scheduled(sequence, 11)])
    assert outcomes[0].result.answer == whole_answer


@pytest.mark.parametrize("share", [0.75, 0.9])
@pytest.mark.parametrize("strategy", ["random", "fastv", "pdrop", "llavolta"])
def test_a_plan_spends_its_budget_and_never_more(
    case: FamilyCase, runner: ModelRunner, strategy: str, share: float
) -> None:
    request = _request(case, 4, form=FlopsShare(share=share), strategy=strategy)
    spent = answers(runner, [request])[request.id].cost.prefill_ratio
    assert 0.85 * share <= spent <= share


def test_every_special_token_of_the_tokenizer_stays_text(
    case: FamilyCase, adapter: TransformersAdapter, reference: Reference
) -> None:
    tokenizer = reference.processor.tokenizer
    added = {token.content: idx for idx, token in tokenizer.added_tokens_decoder.items()}
    image = noise_image(1, width=case.sizes[0][0], height=case.sizes[0][1])
    plain = adapter.prompt("", [adapter.layout(image)])
    for text, token_id in added.items():
        prompt = adapter.prompt(f"say {text} twice: {text}", [adapter.layout(image)])
        assert prompt.token_ids.count(token_id) == plain.token_ids.count(token_id), text
        start, count = prompt.question_slot
        assert text in tokenizer.decode(prompt.token_ids[start : start + count])


def test_a_plan_only_request_and_a_repeat_agree(case: FamilyCase, runner: ModelRunner) -> None:
    chat = _request(case, 5, form=Counts(tokens=6), strategy="fastv")
    plan_only = replace(chat, id="plan", plan_only=True, sampling=SamplingParams(max_tokens=1))
    results = answers(runner, [chat, plan_only])
    assert results["plan"].plan == results[chat.id].plan
