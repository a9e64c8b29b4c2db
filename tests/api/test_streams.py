"""Server-sent events: framing, errors after the start, keep-alive, hanging up."""

from __future__ import annotations

import asyncio
import json

import pytest

from allrounder.engine.fake import FakeRunner
from allrounder.errors import DeadlineExceeded
from allrounder_service.api import responses
from tests.api.calls import QUESTION, BareCall, chat_body, events


async def test_a_stream_is_deltas_then_the_answer_less_its_text_then_done(serve):
    async with serve() as served:
        response = await served.client.post("/v1/chat", json=chat_body(stream=True, budget=0.7))
        whole = await served.client.post("/v1/chat", json=chat_body(budget=0.7))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    *deltas, last, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(json.loads(delta)["delta"] for delta in deltas) == QUESTION
    assert [list(json.loads(delta)) for delta in deltas] == [["delta"]] * 8
    summary, expected = json.loads(last), whole.json()
    assert list(summary) == [key for key in expected if key != "answer"]
    assert summary["usage"] == expected["usage"]
    assert summary["pruning"] == expected["pruning"]


async def test_a_streams_last_event_tells_the_loyalty_to_expect(serve):
    body = chat_body(stream=True, budget={"quality": 0.5})
    async with serve() as served:
        response = await served.client.post("/v1/chat", json=body)
    pruning = json.loads(events(response.text)[-2])["pruning"]
    assert pruning["budget"]["expected_loyalty"] == 0.5
    assert pruning["visual_tokens"]["kept"] == 8


async def test_text_of_any_script_and_line_breaks_survive_the_framing(serve):
    question = 'é中🙂 "x"\\ data:[DONE]'
    async with serve() as served:
        body = chat_body(stream=True, question=question)
        response = await served.client.post("/v1/chat", json=body)
    deltas = [json.loads(event) for event in events(response.text)[:-2]]
    assert "".join(delta["delta"] for delta in deltas) == question


@pytest.mark.parametrize(
    ("fault", "code"),
    [(DeadlineExceeded("too late"), "deadline_exceeded"), (RuntimeError("/x/y"), "step_failed")],
)
async def test_an_error_after_the_start_is_one_event(serve, fault, code):
    async with serve(FakeRunner(faults={"boom": fault})) as served:
        body = chat_body(stream=True, question="boom")
        response = await served.client.post("/v1/chat", json=body)
    assert response.status_code == 200
    error, done = events(response.text)
    assert (json.loads(error)["error"]["code"], done) == (code, "[DONE]")
    assert "/x/y" not in response.text


async def test_an_unexpected_error_in_a_stream_hides_its_text(serve, monkeypatch):
    def fail(*_args, **_kwargs):
        raise ValueError("secret at 0x7f0012345678")

    monkeypatch.setattr("allrounder_service.api.answers.ChatWriter.whole", fail)
    async with serve() as served:
        response = await served.client.post("/v1/chat", json=chat_body(stream=True))
    error = json.loads(events(response.text)[-2])["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in response.text


async def test_hanging_up_cancels_the_stream_at_once(serve):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        fields = chat_body(stream=True, question="word " * 500)
        call = BareCall(served.app, "/v1/chat", fields)
        await served.until(lambda: b"delta" in call.body)
        call.hang_up()
        await asyncio.wait_for(call.task, 2)
        await served.until_running(0)
        assert await served.metric('success_total{reason="cancelled"}') == 1
        assert b"[DONE]" not in call.body


async def test_a_killed_server_task_cancels_the_stream(serve):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        fields = chat_body(stream=True, question="word " * 500)
        call = BareCall(served.app, "/v1/chat", fields)
        await served.until(lambda: b"delta" in call.body)
        call.task.cancel()
        await asyncio.gather(call.task, return_exceptions=True)
        await served.until_running(0)
        assert await served.metric('success_total{reason="cancelled"}') == 1


async def test_silence_is_filled_with_comments_and_loses_no_event(serve, monkeypatch):
    monkeypatch.setattr(responses, "KEEP_ALIVE_SECONDS", 0.02)
    async with serve(FakeRunner(step_seconds=0.07)) as served:
        body = chat_body(stream=True, question="a b c")
        response = await served.client.post("/v1/chat", json=body)
    assert response.text.count(": keep-alive\n\n") >= 3
    deltas = [json.loads(event) for event in events(response.text)[:-2]]
    assert "".join(delta["delta"] for delta in deltas) == "a b c"


async def test_every_second_stream_hanging_up_leaves_the_others_whole(serve):
    async with serve(FakeRunner(step_seconds=0.002), max_running=8, max_queue=64) as served:
        calls = [BareCall(served.app, "/v1/chat", chat_body(stream=True)) for _ in range(24)]
        await served.until(lambda: any(b"delta" in call.body for call in calls))
        for call in calls[::2]:
            call.hang_up()
        await asyncio.wait_for(asyncio.gather(*(call.task for call in calls)), 5)
        await served.until_running(0)
        for call in calls[1::2]:
            deltas = [json.loads(event) for event in events(call.body.decode())[:-2]]
            assert "".join(delta["delta"] for delta in deltas) == QUESTION
        assert served.runner.kv_bytes_held() == 0
