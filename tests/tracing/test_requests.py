"""What a receiver gets of each request: names, parents, times, attributes, ends."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import httpx2
import pytest

from allrounder.engine.fake import FakeRunner
from tests.api.calls import QUESTION, URL, chat_body, completion_body, events

pytestmark = pytest.mark.timeout(60)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=opaque"}
STAGES = ["queue", "encode", "plan", "prefill", "decode"]
# Answers tell whole microseconds.
ROUNDING = 1e-5


def assert_stages_lie_within(root, stages):
    """In order, without overlap, inside their request."""
    assert root.began <= stages[0].began
    for before, after in pairwise(stages):
        assert before.ended <= after.began + 1e-6
    assert stages[-1].ended <= root.ended + 1e-6
    assert all(stage.seconds >= 0 for stage in stages)
    assert sum(stage.seconds for stage in stages) <= root.seconds + 1e-6


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat", chat_body), ("/v1/chat/completions", completion_body)],
)
async def test_a_request_goes_on_with_its_callers_trace(serve, receiver, path, body):
    async with serve(FakeRunner(step_seconds=0.01), otlp_endpoint=receiver.url) as client:
        asked = body(budget=0.6, max_tokens=5, temperature=0.5)
        response = await client.post(path, json=asked, headers={**CALLER, "X-Request-Id": "mine"})
        answer = response.json()
    root = receiver.root
    assert (root.name, root.kind) == ("chat fake", "SERVER")
    assert (root.trace_id, root.parent, root.trace_state) == (TRACE, PARENT, "vendor=opaque")
    assert root.status == ("UNSET", "")
    pruning = answer["pruning"]
    assert root.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "allrounder",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.response.id": answer["id"],
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
        "gen_ai.response.finish_reasons": ["length"],
        "http.request.method": "POST",
        "http.route": path,
        "http.response.status_code": 200,
        "allrounder.request.id": "mine",
        "allrounder.budget.limit": 0.6,
        "allrounder.strategy": "fake",
        "allrounder.visual_tokens.kept": pruning["visual_tokens"]["kept"],
        "allrounder.visual_tokens.total": 16,
        "allrounder.layers.run": 4,
        "allrounder.layers.total": 4,
        "allrounder.flops.dense": pruning["flops"]["dense"],
        "allrounder.flops.executed": pruning["flops"]["executed"],
        "allrounder.flops.saved": pruning["flops"]["saved"],
    }
    assert root.resource["service.name"] == "allrounder"


async def test_the_stages_lie_below_their_request_in_order_and_in_time(serve, receiver):
    async with serve(FakeRunner(step_seconds=0.02), otlp_endpoint=receiver.url) as client:
        answer = (await client.post("/v1/chat", json=chat_body())).json()
    root = receiver.root
    stages = receiver.below(root)
    assert [stage.name for stage in stages] == STAGES
    assert {stage.kind for stage in stages} == {"INTERNAL"}
    assert {stage.trace_id for stage in receiver.spans} == {root.trace_id}
    assert root.parent == ""
    assert_stages_lie_within(root, stages)
    timing, total = answer["timing"], stages[-1].ended - stages[0].began
    assert stages[0].seconds == pytest.approx(timing["queue_ms"] / 1000, abs=ROUNDING)
    assert total == pytest.approx(timing["total_ms"] / 1000, abs=ROUNDING)
    prefill, decode = stages[-2:]
    assert prefill.seconds >= 0.02
    assert decode.seconds >= 0.02 * (answer["usage"]["completion_tokens"] - 1)
    assert root.events == {"first_token": decode.began}


async def test_a_stream_ends_its_span_behind_its_last_event(serve, receiver):
    async with serve(FakeRunner(step_seconds=0.02), otlp_endpoint=receiver.url) as client:
        text = (await client.post("/v1/chat", json=chat_body(stream=True))).text
    root = receiver.root
    assert events(text)[-1] == "[DONE]"
    assert root.attributes["gen_ai.usage.output_tokens"] == len(QUESTION.split())
    assert root.seconds >= 0.02 * len(QUESTION.split())
    assert root.began < root.events["first_token"] < root.ended - 0.02
    assert_stages_lie_within(root, receiver.below(root))


async def test_a_plan_is_traced_up_to_its_plan(serve, receiver):
    async with serve(otlp_endpoint=receiver.url) as client:
        assert (await client.post("/v1/plan", json=chat_body())).status_code == 200
    assert receiver.root.name == "plan fake"
    assert receiver.root.events == {}
    assert "decode" not in [stage.name for stage in receiver.below(receiver.root)]


async def test_nothing_private_is_sent(serve, receiver):
    key, secret = "sk-very-secret", "zanzibar marzipan"
    async with serve(otlp_endpoint=receiver.url, api_keys=(key,)) as client:
        headers = {"Authorization": f"Bearer {key}", "baggage": "user=alice", **CALLER}
        whole = await client.post("/v1/chat", json=chat_body(question=secret), headers=headers)
        parts = completion_body(secret, None, stream=True, user="alice", stop=["quagga"])
        await client.post("/v1/chat/completions", json=parts, headers=headers)
        await client.post("/v1/chat", json=chat_body(**{secret: 1}), headers=headers)
    assert whole.json()["answer"] == secret
    assert len(receiver.roots) == 3
    sent = b"".join(receiver.bodies)
    for private in (*secret.split(), key, URL[-40:], "alice", "quagga", "public", "tenant"):
        assert private.encode() not in sent


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [
        (chat_body(temperature=9), "invalid_field", 422),
        (chat_body(image="data:image/png;base64,AAAA"), "unsupported_image_format", 400),
        (chat_body(budget=0.0001), "budget_too_small", 422),
        (chat_body(question="boom"), "step_failed", 500),
        (chat_body(deadline_ms=1, question="slow " * 50), "deadline_exceeded", 504),
    ],
)
async def test_an_error_is_marked_by_its_code(serve, receiver, body, code, status):
    runner = FakeRunner(step_seconds=0.01, faults={"boom": RuntimeError("/srv/secret.py")})
    async with serve(runner, otlp_endpoint=receiver.url) as client:
        response = await client.post("/v1/chat", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    root = receiver.root
    assert root.status == ("ERROR", code)
    assert root.attributes["error.type"] == code
    assert root.attributes["http.response.status_code"] == status
    assert "gen_ai.response.id" not in root.attributes
    assert b"secret" not in b"".join(receiver.bodies)


async def test_a_request_that_never_reached_the_engine_has_no_stages(serve, receiver):
    async with serve(otlp_endpoint=receiver.url, api_keys=("k",)) as client:
        assert (await client.post("/v1/chat", json=chat_body())).status_code == 401
    assert (receiver.root.name, receiver.root.status) == ("chat", ("ERROR", "invalid_api_key"))
    assert receiver.below(receiver.root) == []


async def test_an_error_on_openais_endpoint_has_the_code_of_its_answer(serve, receiver):
    async with serve(otlp_endpoint=receiver.url) as client:
        body = completion_body(budget=0.0001)
        error = (await client.post("/v1/chat/completions", json=body)).json()["error"]
    assert receiver.root.status == ("ERROR", error["code"])


async def test_a_fault_shows_how_far_its_request_came(serve, receiver):
    runner = FakeRunner(step_seconds=0.01, faults={"boom": RuntimeError("lost")})
    async with serve(runner, otlp_endpoint=receiver.url) as client:
        response = await client.post("/v1/chat", json=chat_body(question="boom", stream=True))
    assert '"step_failed"' in response.text
    root = receiver.root
    assert root.status == ("ERROR", "step_failed")
    assert root.attributes["http.response.status_code"] == 200
    stages = receiver.below(root)
    assert [stage.name for stage in stages] == ["queue", "encode", "plan", "prefill"]
    assert_stages_lie_within(root, stages)


async def test_a_full_queue_is_an_error_of_the_request_that_it_turned_away(serve, receiver):
    runner = FakeRunner(step_seconds=0.05)
    async with serve(runner, otlp_endpoint=receiver.url, max_running=1, max_queue=1) as client:
        calls = [client.post("/v1/chat", json=chat_body()) for _ in range(6)]
        statuses = [response.status_code for response in await asyncio.gather(*calls)]
    marked = [root.attributes["http.response.status_code"] for root in receiver.roots]
    assert sorted(marked) == sorted(statuses)
    turned_away = [root for root in receiver.roots if root.status == ("ERROR", "queue_full")]
    assert len(turned_away) == statuses.count(429) > 0
    assert all(receiver.below(root) == [] for root in turned_away)


async def hang_up(client, **fields):
    async with client.stream("POST", "/v1/chat", json=chat_body(**fields)) as response:
        async for _ in response.aiter_text():
            return


async def test_a_caller_who_goes_away_is_marked_and_is_no_error(serve, receiver):
    runner = FakeRunner(step_seconds=0.02)
    async with serve(runner, otlp_endpoint=receiver.url) as client:
        await hang_up(client, stream=True, question="word " * 500)
        await _until_idle(runner)
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("/v1/chat", json=chat_body(question="word " * 500), timeout=0.3)
        await _until_idle(runner)
    assert len(receiver.roots) == 2
    for root in receiver.roots:
        assert root.attributes["allrounder.cancelled"] is True
        assert root.attributes["gen_ai.response.finish_reasons"] == ["cancelled"]
        assert root.status == ("UNSET", "")
        stages = receiver.below(root)
        assert [stage.name for stage in stages] == STAGES
        assert_stages_lie_within(root, stages)
        assert root.seconds < 5


async def _until_idle(runner):
    async with asyncio.timeout(10):
        while runner.running:
            await asyncio.sleep(0.01)


async def test_requests_in_one_batch_have_a_trace_each(serve, receiver):
    async with serve(FakeRunner(step_seconds=0.02), otlp_endpoint=receiver.url) as client:
        bodies = [chat_body(question="a b c " * n) for n in (1, 2, 3)]
        await asyncio.gather(*(client.post("/v1/chat", json=body) for body in bodies))
    roots = receiver.roots
    assert len({root.trace_id for root in roots}) == 3
    assert sorted(root.attributes["gen_ai.usage.output_tokens"] for root in roots) == [3, 6, 9]
    for root in roots:
        assert_stages_lie_within(root, receiver.below(root))


async def test_a_request_that_gave_way_says_so(serve, receiver):
    runner = FakeRunner(step_seconds=0.001, max_kv_bytes=360 * 32)
    async with serve(runner, otlp_endpoint=receiver.url) as client:
        calls = [client.post("/v1/chat", json=chat_body(question="word " * 100)) for _ in range(2)]
        assert {response.status_code for response in await asyncio.gather(*calls)} == {200}
    (gave_way,) = [root for root in receiver.roots if "preempted" in root.events]
    assert gave_way.events["first_token"] < gave_way.events["preempted"] < gave_way.ended
    for root in receiver.roots:
        stages = receiver.below(root)
        assert [stage.name for stage in stages] == STAGES
        assert_stages_lie_within(root, stages)


async def test_other_addresses_are_not_traced(serve, receiver):
    async with serve(otlp_endpoint=receiver.url) as client:
        for path in ("/livez", "/metrics", "/v1/models", "/nowhere"):
            await client.get(path)
    assert receiver.spans == []
