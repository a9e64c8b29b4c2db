"""Limits of a key as its holder meets them over HTTP."""

from __future__ import annotations

import time
from dataclasses import replace

import openai
import pytest
from starlette.datastructures import Headers

from allrounder.engine.fake import FakeRunner
from allrounder_service.api.limits import Limiter
from tests.api.calls import BareCall, chat_body, completion_body, problem
from tests.api.keys import add_key, bearer, listening


class FakeClock:
    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


def set_clock(served, clock):
    served.app.state.services = replace(served.app.state.services, limiter=Limiter(clock))


async def test_requests_a_minute_are_told_refused_and_come_back(serve):
    clock = FakeClock()
    async with serve(requests_per_minute=2) as served:
        set_clock(served, clock)
        first = await served.client.post("/v1/chat", json=chat_body())
        names = [f"x-ratelimit-{kind}-requests" for kind in ("limit", "remaining", "reset")]
        assert [first.headers[name] for name in names] == ["2", "1", "30s"]
        assert "x-ratelimit-limit-tokens" not in first.headers
        await served.client.post("/v1/plan", json=chat_body())
        refused = await served.client.post("/v1/chat", json=chat_body())
        problem(refused, 429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "30"
        assert [refused.headers[name] for name in names] == ["2", "0", "1m0s"]
        clock.now += 29_999_999_999
        response = await served.client.post("/v1/chat", json=chat_body())
        problem(response, 429, "rate_limit_exceeded")
        clock.now += 1
        assert (await served.client.post("/v1/chat", json=chat_body())).status_code == 200
        assert await served.metric('rejections_total{reason="rate_limit_exceeded"}') == 2


async def test_the_tokens_of_an_answer_are_those_of_its_usage_and_pruning_makes_it_cheaper(serve):
    async with serve(tokens_per_minute=10_000) as served:
        set_clock(served, FakeClock())
        left = 10_000
        for budget in (1, 0.6):
            answer = await served.client.post("/v1/chat", json=chat_body(budget=budget))
            used = answer.json()["usage"]["total_tokens"]
            left -= used
            assert answer.headers["x-ratelimit-remaining-tokens"] == str(left)
        assert used < 10_000 - left - used
        planned = await served.client.post("/v1/plan", json=chat_body())
        assert planned.headers["x-ratelimit-remaining-tokens"] == str(left)


async def test_a_stream_is_charged_for_its_prompt_at_its_start_and_wholly_at_its_end(serve):
    async with serve(tokens_per_minute=10_000) as served:
        set_clock(served, FakeClock())
        body = completion_body(stream=True, stream_options={"include_usage": True})
        streamed = await served.client.post("/v1/chat/completions", json=body)
        plain = await served.client.post("/v1/chat/completions", json=completion_body())
    used = plain.json()["usage"]["total_tokens"]
    at_start = int(streamed.headers["x-ratelimit-remaining-tokens"])
    assert 10_000 - used < at_start < 10_000
    assert int(plain.headers["x-ratelimit-remaining-tokens"]) == 10_000 - 2 * used


async def test_a_request_that_the_engine_refuses_costs_no_tokens_but_counts_as_one(serve):
    async with serve(tokens_per_minute=1000, requests_per_minute=10) as served:
        set_clock(served, FakeClock())
        refused = await served.client.post("/v1/chat", json=chat_body(budget=0.001))
    problem(refused, 422, "budget_too_small", "budget")
    assert refused.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert refused.headers["x-ratelimit-remaining-requests"] == "9"


async def test_without_limits_there_are_no_such_headers(serve):
    async with serve() as served:
        response = await served.client.get("/v1/models")
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


async def test_a_disconnect_frees_the_place_and_pays_for_what_was_made(serve):
    runner = FakeRunner(step_seconds=0.02)
    async with serve(runner, concurrent_requests=1, tokens_per_minute=10_000) as served:
        set_clock(served, FakeClock())
        fields = chat_body(question="word " * 100, stream=True)
        call = BareCall(served.app, "/v1/chat", fields)
        await served.until_running(1)
        busy = await served.client.post("/v1/chat", json=chat_body())
        problem(busy, 429, "rate_limit_exceeded")
        assert busy.headers["retry-after"] == "1"
        await served.until(lambda: call.body.count(b"delta") >= 3)
        call.hang_up()
        await call.task
        free = await served.client.get("/v1/models")
        assert free.status_code == 200
        left = int(free.headers["x-ratelimit-remaining-tokens"])
        whole = await served.client.post("/v1/chat", json=fields | {"stream": False})
        used = whole.json()["usage"]["total_tokens"]
    num_prompt = used - whole.json()["usage"]["completion_tokens"]
    assert num_prompt + 3 <= 10_000 - left < used


async def test_places_are_free_again_after_every_kind_of_end(serve):
    async with serve(concurrent_requests=1) as served:
        for body, status in [
            (chat_body(), 200),
            (chat_body(stream=True), 200),
            (chat_body(budget=2), 422),
            ({}, 422),
        ]:
            response = await served.client.post("/v1/chat", json=body)
            assert response.status_code == status
        unread = await served.client.post("/v1/chat", content=b"x")
        assert unread.status_code == 415


async def test_a_keys_own_limits_replace_the_servers(serve, tmp_path):
    path = tmp_path / "keys.json"
    tight = add_key(path, requests_per_minute=1)
    loose = add_key(path, requests_per_minute=0)
    plain = add_key(path)
    async with serve(api_keys_file=path, requests_per_minute=3) as served:
        set_clock(served, FakeClock())

        async def passed(key):
            statuses = [
                (await served.client.get("/v1/models", headers=bearer(key))).status_code
                for _ in range(5)
            ]
            return statuses.count(200)

        assert [await passed(key) for key in (tight, loose, plain)] == [1, 5, 3]


@pytest.mark.timeout(60)
async def test_openais_client_waits_as_long_as_it_is_told_and_succeeds(serve):
    async with serve(requests_per_minute=60) as served, listening(served.app) as port:
        services = served.app.state.services
        caller = services.keys.caller_of(Headers())
        for _ in range(60):
            metered = services.limiter.request(caller.name, caller.limits)
            metered.acquire()
            metered.release()
        sdk = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any")
        async with sdk:
            started = time.monotonic()
            raw = await sdk.chat.completions.with_raw_response.create(**completion_body())
            waited = time.monotonic() - started
    assert raw.retries_taken >= 1
    assert raw.parse().choices[0].message.content
    assert waited >= 0.5
