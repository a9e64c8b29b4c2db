"""Log-probabilities: the model's own distribution as plain transformers computes it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allrounder.core import ChatRequest, SamplingParams, ScoredToken
from allrounder.engine.execution.runner import ModelRunner
from allrounder.engine.execution.sampling import Scores
from allrounder.models.transformers import TransformersAdapter
from tests.engine.driving import answers, begin, finished, whole
from tests.families.reference import Reference
from tests.tiny import chat_request

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def reference(llava_folder: Path) -> Reference:
    return Reference(llava_folder)


def _asking(seed: int, num_top: int | None = 5, **fields: Any) -> ChatRequest:
    sampling = SamplingParams(**{"max_tokens": 8, "top_logprobs": num_top, "seed": 7, **fields})
    return chat_request(seed, sampling=sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_they_are_those_of_transformers_own_forward_whatever_the_temperature(
    runner: ModelRunner,
    adapter: TransformersAdapter,
    reference: Reference,
    seed: int,
    temperature: float,
) -> None:
    request = _asking(seed, temperature=temperature, top_p=0.9)
    sequence = finished(runner, request)
    logits = reference.logits(request, sequence.token_ids, sequence.plan)
    log_probs = logits.double().log_softmax(-1)
    scored = sequence.scores.tokens if sequence.scores else ()
    ids = [idx for idx in sequence.token_ids if idx not in adapter.eos_token_ids]
    assert len(scored) == len(ids) > 0
    for step, (token, token_id) in enumerate(zip(scored, ids, strict=True)):
        assert token.logprob == pytest.approx(float(log_probs[step, token_id]), abs=1e-4)
        assert token.content == adapter.token_bytes(token_id)
        best = log_probs[step].topk(5).values.tolist()
        assert [top.logprob for top in token.top] == pytest.approx(best, abs=1e-4)


def test_all_of_the_vocabulary_sums_to_one(
    runner: ModelRunner, adapter: TransformersAdapter
) -> None:
    request = _asking(1, num_top=adapter.geometry.vocab_size)
    for token in answers(runner, [request])[request.id].scored:
        assert sum(math.exp(top.logprob) for top in token.top) == pytest.approx(1, abs=1e-4)
        assert max(top.logprob for top in token.top) == token.top[0].logprob


def test_a_batch_has_those_of_its_singles_and_neighbours_that_ask_for_none_get_none(
    runner: ModelRunner,
) -> None:
    asking = [_asking(seed, num_top=3) for seed in range(3)]
    silent = [replace(_asking(seed, None), id=f"silent-{seed}") for seed in range(3)]
    together = answers(runner, [*asking, *silent])
    for request in asking:
        alone = answers(runner, [request])[request.id]
        ours = together[request.id].scored
        assert [token.content for token in ours] == [token.content for token in alone.scored]
        theirs = [token.logprob for token in alone.scored]
        assert [token.logprob for token in ours] == pytest.approx(theirs, abs=1e-4)
        assert all(len(token.top) == 3 for token in ours)
    assert all(together[request.id].scored == () for request in silent)
    for request, other in zip(asking, silent, strict=True):
        assert together[request.id].answer == together[other.id].answer


def test_bytes_of_all_tokens_are_the_answer_and_chunks_carry_each_token_once(
    runner: ModelRunner,
) -> None:
    request = _asking(2, max_tokens=20)
    (sequence,) = begin(runner, [request])
    told: list[ScoredToken] = []
    result = None
    while result is None:
        (outcome,) = runner.step(whole([sequence]))
        assert outcome.chunk is not None
        told += outcome.chunk.scored
        result = outcome.result
    assert tuple(told) == result.scored
    written = b"".join(token.content for token in told).decode(errors="replace")
    unfinished = written.lstrip().removeprefix(result.answer)
    assert unfinished.strip("\ufffd") == ""


def test_a_preempted_request_keeps_those_it_had(runner: ModelRunner) -> None:
    request = _asking(3)
    undisturbed = answers(runner, [request])[request.id].scored
    (sequence,) = begin(runner, [request])
    for _ in range(3):
        runner.step(whole([sequence]))
    runner.preempt(sequence.state)
    while (outcome := runner.step(whole([sequence]))[0]).result is None:
        pass
    logprobs = [token.logprob for token in outcome.result.scored]
    assert logprobs == pytest.approx([token.logprob for token in undisturbed], abs=1e-4)


def _letters() -> Scores:
    return Scores(1, lambda token_id: bytes([token_id]))


def test_tokens_wait_with_their_text_and_those_of_a_stop_string_are_not_told() -> None:
    scores = _letters()
    for num_chars, letter in enumerate(b"abSTOP", 1):
        scores.push(letter, torch.zeros(256), num_chars=num_chars)
        expected = b"a" if num_chars == 1 else b"b" if num_chars == 2 else b""
        told = scores.emitted(min(num_chars, 2))
        assert b"".join(token.content for token in told) == expected
    scores.cut(2)
    assert scores.rest() == ()
    assert [token.content for token in scores.tokens] == [b"a", b"b"]


def test_what_was_held_back_is_told_at_the_end() -> None:
    scores = _letters()
    for num_chars, letter in enumerate(b"ST", 1):
        scores.push(letter, torch.zeros(256), num_chars=num_chars)
        assert scores.emitted(0) == ()
    assert [token.content for token in scores.rest()] == [b"S", b"T"]
    assert scores.rest() == ()


def test_a_stop_string_cuts_the_answer_and_its_tokens_alike(runner: ModelRunner) -> None:
    free = answers(runner, [_asking(2, max_tokens=20)])["request-2"]
    stop = free.answer[4:6]
    request = _asking(2, max_tokens=20, stop=(stop,))
    cut = answers(runner, [request])[request.id]
    assert cut.answer == free.answer[: free.answer.index(stop)]
    written = b"".join(token.content for token in cut.scored).decode(errors="replace")
    assert written.lstrip().startswith(cut.answer)
    assert len(cut.scored) <= len(free.scored)
