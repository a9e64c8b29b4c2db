"""Bodies answered as lines of a batch: as over HTTP, but at batch priority, and cancellable."""

from __future__ import annotations

import asyncio

import pytest

from allrounder.core import Priority
from allrounder.engine.fake import FakeRunner
from allrounder_service.api.serving import LINE_ENDPOINTS, answer_line
from tests.api.calls import QUESTION, chat_body, completion_body

BODIES = {"/v1/chat": chat_body, "/v1/chat/completions": completion_body}


def line(served, url, body, *, id="line-1"):
    return answer_line(served.app.state.services, url, body, tenant="public", id=id)


def text_of(answer):
    return answer["answer"] if "answer" in answer else answer["choices"][0]["message"]["content"]


def without_what_varies(answer):
    return {key: value for key, value in answer.items() if key not in ("id", "created", "timing")}


def test_every_url_has_a_body_here():
    assert set(LINE_ENDPOINTS) == set(BODIES)


@pytest.mark.parametrize("url", BODIES)
async def test_a_line_is_what_the_endpoint_answers(serve, url):
    body = BODIES[url](budget=0.6)
    async with serve() as served:
        status, answer = await line(served, url, body)
        posted = (await served.client.post(url, json=body)).json()
    assert (status, answer["id"], text_of(answer)) == (200, "line-1", QUESTION)
    assert without_what_varies(answer) == without_what_varies(posted)


@pytest.mark.parametrize("url", BODIES)
@pytest.mark.parametrize(
    "fields", [{"temperature": 9}, {"colour": 1}, {"budget": 0.001}, {"max_tokens": 10**6}]
)
async def test_what_is_wrong_is_the_endpoints_own_status_and_envelope(serve, url, fields):
    body = BODIES[url](**fields)
    async with serve() as served:
        status, answer = await line(served, url, body)
        posted = await served.client.post(url, json=body)
    assert (status, answer) == (posted.status_code, posted.json())
    assert status in (400, 422)


@pytest.mark.parametrize("url", BODIES)
async def test_a_stream_is_refused(serve, url):
    async with serve() as served:
        status, answer = await line(served, url, BODIES[url](stream=True))
    assert status == (422 if url == "/v1/chat" else 400)
    assert answer["error"]["param"] == "stream"


async def test_an_unknown_url_is_refused_by_name(serve):
    async with serve() as served:
        status, answer = await line(served, "/v1/embeddings", {})
    assert (status, answer["error"]["param"]) == (404, "url")


@pytest.mark.parametrize("url", BODIES)
async def test_a_line_goes_at_batch_priority_whatever_it_says(serve, url):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        body = BODIES[url](priority="interactive")
        task = asyncio.create_task(line(served, url, body))
        await served.until(lambda: served.runner.running)
        (running,) = served.runner.running.values()
        assert running.request.priority is Priority.BATCH
        assert (await task)[0] == 200


@pytest.mark.parametrize("url", BODIES)
async def test_a_cancelled_line_frees_its_request(serve, url):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        body = chat_body(question="word " * 500)
        if url != "/v1/chat":
            body = completion_body("word " * 500)
        task = asyncio.create_task(line(served, url, body))
        await served.until_running(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await served.until_running(0)
        assert served.runner.kv_bytes_held() == 0


async def test_an_overloaded_engine_is_a_429_for_a_line_too(serve):
    async with serve(FakeRunner(step_seconds=0.05), max_running=1, max_queue=1) as served:
        lines = [
            line(served, "/v1/chat/completions", completion_body(), id=f"line-{idx}")
            for idx in range(6)
        ]
        statuses = [status for status, _ in await asyncio.gather(*lines)]
    assert set(statuses) == {200, 429}


async def test_a_fault_of_the_engine_tells_nothing(serve):
    async with serve(FakeRunner(faults={"boom": RuntimeError("/srv/secret.py")})) as served:
        status, answer = await line(served, "/v1/chat/completions", completion_body("boom"))
    assert (status, answer["error"]["code"]) == (500, "step_failed")
    assert "secret" not in str(answer)
