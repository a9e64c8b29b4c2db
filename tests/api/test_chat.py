"""POST /v1/chat and /v1/plan, whole answers."""

from __future__ import annotations

import asyncio
import json

import pytest

from allrounder.engine.fake import DeviceLost, FakeRunner
from allrounder.engine.protocols import EngineState
from allrounder.errors import EngineOutOfMemory
from tests.api.calls import QUESTION, URL, BareCall, chat_body, problem
from tests.intake import pictures


async def test_an_answer_has_exactly_the_contracts_shape(serve):
    async with serve() as served:
        response = await served.client.post("/v1/chat", json=chat_body(budget=0.6))
    answer = response.json()
    assert response.status_code == 200
    assert list(answer) == [
        *("id", "object", "created", "model", "answer", "finish_reason"),
        *("usage", "pruning", "timing"),
    ]
    assert (answer["object"], answer["model"], answer["answer"]) == ("chat", "fake", QUESTION)
    assert answer["id"].startswith("chat-")
    kept = answer["pruning"]["visual_tokens"]["kept"]
    text = 8 + len(QUESTION.split())
    assert answer["usage"] == {
        "prompt_tokens": text + kept,
        "prompt_tokens_details": {"image_tokens": kept, "image_tokens_before": 16},
        "completion_tokens": 8,
        "total_tokens": text + kept + 8,
    }
    assert set(answer["timing"]) == {
        f"{stage}_ms" for stage in ("queue", "encode", "plan", "prefill", "decode", "total")
    }


async def test_the_pruning_report_adds_up_and_stays_within_the_budget(serve):
    async with serve() as served:
        response = await served.client.post("/v1/chat", json=chat_body(budget={"flops": 0.6}))
    pruning = response.json()["pruning"]
    flops = pruning["flops"]
    assert pruning["budget"] == {
        "requested": {"flops": 0.6},
        "limit": 0.6,
        "expected_loyalty": None,
    }
    assert set(pruning) == {
        *("strategy", "router", "budget", "visual_tokens", "layers", "flops"),
    }
    assert pruning["layers"] == {"total": 4, "run": 4, "skipped": []}
    assert flops["saved"] == flops["dense"] - flops["executed"] > 0
    assert 0 < flops["prefill_ratio"] <= 0.6


async def test_a_budget_of_one_is_dense(serve):
    async with serve() as served:
        pruning = (await served.client.post("/v1/chat", json=chat_body())).json()["pruning"]
    assert (pruning["strategy"], pruning["router"], pruning["flops"]["saved"]) == ("none", None, 0)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/plan"])
async def test_a_quality_is_echoed_with_the_loyalty_to_expect_and_the_limit_it_led_to(serve, path):
    budget = {"quality": 0.7, "min_tokens": 2}
    async with serve() as served:
        response = await served.client.post(path, json=chat_body(budget=budget))
        full = await served.client.post(path, json=chat_body(budget={"quality": 1}))
    pruning = response.json()["pruning"]
    assert pruning["visual_tokens"]["kept"] == 12
    ratio = pruning["flops"]["prefill_ratio"]
    assert pruning["budget"] == {"requested": budget, "limit": ratio, "expected_loyalty": 0.75}
    assert full.json()["pruning"]["budget"]["expected_loyalty"] == 1
    assert full.json()["pruning"]["flops"]["saved"] == 0


async def test_explain_maps_kept_tokens_per_image_and_every_layer(serve):
    body = {"images": [URL, URL], "question": "hi", "explain": True}
    async with serve() as served:
        response = await served.client.post(
            "/v1/chat", json=body | {"budget": {"tokens": 18, "layers": 3}}
        )
    pruning = response.json()["pruning"]
    whole = [0, 0, 1, 1]
    assert pruning["kept"] == [
        {"rows": 4, "cols": 4, "offset": 0, "area": whole, "indices": list(range(16))},
        {"rows": 4, "cols": 4, "offset": 0, "area": whole, "indices": [0, 1]},
    ]
    assert pruning["decisions"][0] == {"layer": 0, "run": True, "visual_tokens": 18}
    assert pruning["decisions"][3] == {"layer": 3, "run": False, "visual_tokens": 0}
    assert pruning["layers"]["skipped"] == [3]


async def test_generation_ends_at_max_tokens_and_at_stop_strings(serve):
    async with serve() as served:
        short = await served.client.post("/v1/chat", json=chat_body(max_tokens=2))
        stopped = await served.client.post("/v1/chat", json=chat_body(stop=["big"]))
    assert (short.json()["answer"], short.json()["finish_reason"]) == ("what colour", "length")
    assert stopped.json()["answer"] == "what colour is the "


async def test_a_form_with_a_file_is_the_same_request(serve):
    async with serve() as served:
        response = await served.client.post(
            "/v1/chat",
            files={"image": ("a (1).png", pictures.red(), "application/octet-stream")},
            data={
                "question": "123",
                "budget": '{"tokens": 4}',
                "explain": "true",
                "max_tokens": "5",
                "priority": "batch",
            },
        )
    answer = response.json()
    assert answer["answer"] == "123"
    assert answer["pruning"]["visual_tokens"]["kept"] == 4
    assert "kept" in answer["pruning"]


async def test_a_form_takes_several_files_or_a_data_url(serve):
    several = [("image", ("a.png", pictures.red())), ("image", ("b.png", pictures.red()))]
    async with serve() as served:
        two = await served.client.post("/v1/chat", files=several, data={"question": "x"})
        fields = {"question": (None, "x"), "image": (None, URL)}
        url = await served.client.post("/v1/chat", files=fields)
    assert two.json()["pruning"]["visual_tokens"]["total"] == 32
    assert url.status_code == 200


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ([("picture", ("a.png", b"x"))], {"question": "x"}, "picture"),
        ([("image", ("a.png", b"x"))], {"question": "x", "colour": "red"}, "colour"),
        ([("image", ("a.png", b"x"))], {"question": ["x", "y"]}, "question"),
        ([("image", ("a.png", b"x"))], {"question": "x", "image": "data:,"}, "image"),
        ([("image", ("a.png", b"x"))], {"question": "x", "budget": "auto"}, "budget"),
        ([("image", ("a.png", b"x"))], {"question": "x", "budget": "NaN"}, "budget"),
        ([("image", ("a.png", b"x"))], {"question": "x", "budget": "["}, "budget"),
        ([("image", ("a.png", b"x"))], {"question": "x", "stop": "[" * 100_000}, "stop.0"),
        ([("image", ("a.png", b"x"))], {"question": ""}, "question"),
        ([("other", (None, "x"))], {"question": "x"}, "other"),
    ],
)
async def test_a_wrong_form_field_is_named(serve, files, fields, param):
    async with serve() as served:
        response = await served.client.post("/v1/chat", files=files, data=fields)
    problem(response, 422, "invalid_field", param)


async def test_a_plan_tells_the_cost_without_an_answer(serve):
    async with serve() as served:
        response = await served.client.post("/v1/plan", json=chat_body(budget=0.6, explain=True))
        streamed = await served.client.post("/v1/plan", json=chat_body(stream=True))
    plan = response.json()
    assert (plan["object"], plan["id"][:5]) == ("plan", "plan-")
    assert "answer" not in plan
    assert plan["pruning"]["kept"][0]["rows"] == 4
    assert plan["pruning"]["flops"]["prefill_ratio"] <= 0.6
    assert plan["usage"]["prompt_tokens_details"]["image_tokens_before"] == 16
    problem(streamed, 422, "invalid_field", "stream")


async def test_errors_of_the_engines_door_are_proper_statuses_even_for_streams(serve):
    async with serve() as served:
        for stream in (False, True):
            small = await served.client.post("/v1/chat", json=chat_body(budget=0.01, stream=stream))
            problem(small, 422, "budget_too_small", "budget")
            budget = {"flops": 0.5, "strategy": "magic"}
            unknown = await served.client.post(
                "/v1/chat", json=chat_body(budget=budget, stream=stream)
            )
            assert "fake" in problem(unknown, 422, "invalid_field", "budget.strategy")["message"]


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve):
    slow = FakeRunner(step_seconds=0.02)
    async with serve(slow, max_running=1, max_queue=1) as served:
        posts = [served.client.post("/v1/chat", json=chat_body()) for _ in range(6)]
        responses = await asyncio.gather(*posts)
    refused = [each for each in responses if each.status_code != 200]
    assert 0 < len(refused) < 6
    problem(refused[0], 429, "queue_full")
    assert int(refused[0].headers["retry-after"]) >= 1


async def test_a_deadline_ends_with_what_there_is_or_with_a_504(serve):
    long = chat_body(question="word " * 1000, max_tokens=1000, deadline_ms=500)
    async with serve(FakeRunner(step_seconds=0.01), max_running=1) as served:
        some, none = await asyncio.gather(
            served.client.post("/v1/chat", json=long),
            served.client.post("/v1/chat", json=chat_body(deadline_ms=1)),
        )
    assert some.json()["finish_reason"] == "deadline"
    assert some.json()["answer"].startswith("word word")
    problem(none, 504, "deadline_exceeded")


async def test_a_request_that_does_not_fit_is_a_503_and_its_neighbours_go_on(serve):
    runner = FakeRunner(faults={"big": EngineOutOfMemory("the request does not fit")})
    async with serve(runner) as served:
        bad, good = await asyncio.gather(
            served.client.post("/v1/chat", json=chat_body(question="big")),
            served.client.post("/v1/chat", json=chat_body()),
        )
    problem(bad, 503, "engine_oom")
    assert bad.headers["retry-after"] == "1"
    assert good.json()["answer"] == QUESTION


async def test_a_failed_step_is_a_500_that_tells_nothing_and_the_next_request_works(serve):
    secret = RuntimeError("CUDA error at 0x7f00dead in /srv/secret.py")
    async with serve(FakeRunner(faults={"boom": secret})) as served:
        response = await served.client.post("/v1/chat", json=chat_body(question="boom"))
        problem(response, 500, "step_failed")
        assert "secret" not in response.text
        assert (await served.client.post("/v1/chat", json=chat_body())).status_code == 200


async def test_a_lost_device_fails_the_request_and_both_probes(serve):
    async with serve(FakeRunner(faults={"boom": DeviceLost()})) as served:
        response = await served.client.post("/v1/chat", json=chat_body(question="boom"))
        problem(response, 500, "step_failed")
        await served.until(lambda: served.engine.status().state is EngineState.DEAD)
        problem(await served.client.get("/livez"), 503, "engine_dead")
        problem(await served.client.get("/readyz"), 503, "engine_dead")
        problem(await served.client.post("/v1/chat", json=chat_body()), 503, "engine_dead")


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/plan"])
async def test_a_client_that_hangs_up_cancels_its_request(serve, path):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        call = BareCall(served.app, path, chat_body(question="word " * 500))
        await served.until_running(1)
        call.hang_up()
        await asyncio.wait_for(call.task, 2)
        await served.until_running(0)
        assert served.runner.kv_bytes_held() == 0
        if path == "/v1/chat":
            assert await served.metric('success_total{reason="cancelled"}') == 1


async def test_a_client_that_stays_gets_its_bytes(serve):
    async with serve() as served:
        call = BareCall(served.app, "/v1/chat", chat_body())
        await asyncio.wait_for(call.task, 2)
        assert json.loads(call.body)["answer"] == QUESTION
        assert await served.metric('success_total{reason="cancelled"}') == 0
