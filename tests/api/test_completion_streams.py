"""Chunks of a chat completion: their order, their end, errors after the start, hanging up."""

from __future__ import annotations

import asyncio
import json

import pytest

from allrounder.engine.fake import FakeRunner
from allrounder.errors import BudgetTooSmall, DeadlineExceeded
from allrounder_service.api import responses
from tests.api.calls import QUESTION, BareCall, completion_body, events, problem

PATH = "/v1/chat/completions"


async def chunks(served, **fields):
    response = await served.client.post(PATH, json=completion_body(stream=True, **fields))
    assert response.headers["content-type"].startswith("text/event-stream")
    *bodies, done = events(response.text)
    assert done == "[DONE]"
    return [json.loads(body) for body in bodies]


async def test_the_role_comes_first_then_the_text_then_the_reason_with_the_pruning(serve):
    async with serve() as served:
        found = await chunks(served, budget=0.7)
        whole = (await served.client.post(PATH, json=completion_body(budget=0.7))).json()
    first, *middle, last = found
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [list(chunk["choices"][0]["delta"]) for chunk in middle] == [["content"]] * 8
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == QUESTION
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert last["pruning"] == whole["pruning"]
    assert set(last["timing"]) == set(whole["timing"])
    for chunk in found:
        assert chunk["id"] == first["id"]
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["system_fingerprint"] == whole["system_fingerprint"]
        assert "usage" not in chunk
    assert all("pruning" not in chunk for chunk in [first, *middle])


async def test_the_usage_is_one_more_chunk_without_a_choice(serve):
    async with serve() as served:
        *before, last = await chunks(served, stream_options={"include_usage": True})
        whole = (await served.client.post(PATH, json=completion_body())).json()
    assert all(chunk["usage"] is None for chunk in before)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert last["pruning"] == before[-1]["pruning"] == whole["pruning"]
    assert before[-1]["choices"][0]["finish_reason"] == "stop"


async def test_log_probabilities_go_with_the_text_they_belong_to(serve):
    async with serve() as served:
        found = await chunks(served, logprobs=True, top_logprobs=1)
        whole = (
            await served.client.post(PATH, json=completion_body(logprobs=True, top_logprobs=1))
        ).json()
    told = [chunk["choices"][0]["logprobs"] for chunk in found[1:-1]]
    tokens = [token for each in told for token in each["content"]]
    assert tokens == whole["choices"][0]["logprobs"]["content"]
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in found[1:-1]]
    assert [each["content"][0]["token"] for each in told] == texts


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (DeadlineExceeded("too late"), "deadline_exceeded"),
        (BudgetTooSmall("too small", param="budget"), "budget_too_small"),
        (RuntimeError("/x/y"), "step_failed"),
    ],
)
async def test_an_error_after_the_start_is_one_event_and_the_end(serve, fault, code):
    async with serve(FakeRunner(faults={"boom": fault})) as served:
        body = completion_body("boom", stream=True)
        response = await served.client.post(PATH, json=body)
    assert response.status_code == 200
    role, error, done = events(response.text)
    assert json.loads(role)["choices"][0]["delta"]["role"] == "assistant"
    assert (json.loads(error)["error"]["code"], done) == (code, "[DONE]")
    assert "/x/y" not in response.text


async def test_what_is_wrong_at_the_door_is_a_status_even_for_a_stream(serve):
    async with serve() as served:
        small = await served.client.post(PATH, json=completion_body(budget=0.01, stream=True))
        wrong = await served.client.post(PATH, json=completion_body(n=3, stream=True))
    problem(small, 400, "budget_too_small", "budget")
    problem(wrong, 400, "invalid_field", "n")


async def test_a_deadline_in_a_stream_ends_it_with_length(serve):
    async with serve(FakeRunner(step_seconds=0.01)) as served:
        words = completion_body("word " * 500, stream=True, deadline_ms=300, max_tokens=500)
        response = await served.client.post(PATH, json=words)
    *_, last, _ = events(response.text)
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"


async def test_a_silent_stream_is_kept_alive_by_comments(serve, monkeypatch):
    monkeypatch.setattr(responses, "KEEP_ALIVE_SECONDS", 0.02)
    async with serve(FakeRunner(step_seconds=0.2)) as served:
        response = await served.client.post(PATH, json=completion_body("a", stream=True))
    assert response.text.count(": keep-alive\n\n") >= 3
    assert events(response.text)[-1] == "[DONE]"


async def test_hanging_up_cancels_the_stream_at_once(serve):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        call = BareCall(served.app, PATH, completion_body("word " * 500, stream=True))
        await served.until(lambda: b"word" in call.body)
        call.hang_up()
        await asyncio.wait_for(call.task, 2)
        await served.until_running(0)
        assert await served.metric('success_total{reason="cancelled"}') == 1
