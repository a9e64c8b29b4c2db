"""POST /v1/chat/completions, whole answers: OpenAI's shape, and every wrong field by name."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from allrounder.engine.fake import FakeRunner
from allrounder.errors import EngineOutOfMemory
from tests.api.calls import QUESTION, URL, BareCall, completion_body, problem

PATH = "/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
TEXT = {"type": "text", "text": "hi"}


def user(*content, **fields):
    return {"messages": [{"role": "user", "content": list(content), **fields}]}


async def test_a_completion_has_openais_shape_with_pruning_beside_it(serve):
    async with serve() as served:
        body = completion_body(budget=0.6)
        answer = (await served.client.post(PATH, json=body)).json()
        model = (await served.client.get("/v1/models")).json()["data"][0]
        own = {"image": URL, "question": QUESTION, "budget": 0.6}
        chat = (await served.client.post("/v1/chat", json=own)).json()
    assert list(answer) == [
        *("id", "object", "created", "model", "choices", "usage"),
        *("system_fingerprint", "pruning", "timing"),
    ]
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "fake")
    assert answer["system_fingerprint"] == model["fingerprint"]
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": QUESTION, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["pruning"] == chat["pruning"]
    kept = answer["pruning"]["visual_tokens"]["kept"]
    assert answer["usage"] == {
        "prompt_tokens": 16 + kept,
        "completion_tokens": 8,
        "total_tokens": 24 + kept,
        "prompt_tokens_details": {
            "text_tokens": 16,
            "image_tokens": kept,
            "image_tokens_before": 16,
            "cached_tokens": 0,
        },
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [TEXT] * 257}, "messages"),
        ({"messages": ["hello"]}, "messages.0"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
        (user(), "messages.0.content"),
        (user("hi"), "messages.0.content.0.type"),
        (user(TEXT, {"type": "input_audio"}), "messages.0.content.1.type"),
        (user({"type": "text"}), "messages.0.content.0.text"),
        (user({"type": "text", "text": "x", "cache": 1}), "messages.0.content.0.cache"),
        (user({"type": "image_url"}), "messages.0.content.0.image_url"),
        (user({"type": "image_url", "image_url": URL}), "messages.0.content.0.image_url"),
        (user({"type": "image_url", "image_url": {}}), "messages.0.content.0.image_url.url"),
        (
            user({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}),
            "messages.0.content.0.image_url.detail",
        ),
        (
            user({"type": "image_url", "image_url": {"url": URL, "size": 1}}),
            "messages.0.content.0.image_url.size",
        ),
        ({"messages": [{"role": "system", "content": [IMAGE]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "content": [IMAGE]}]}, "messages.0.content.0.type"),
        (user(TEXT, name="e" * 513), "messages.0.name"),
        (user(TEXT, name=7), "messages.0.name"),
        (user(TEXT, refusal=None), "messages.0.refusal"),
        (user({"type": "refusal", "refusal": "no"}), "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "refusal": 7}]}, "messages.0.refusal"),
        (
            {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
            "messages.0.audio",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]},
            "messages.0.content.0.refusal",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
        ),
        (user(*[IMAGE] * 17), "messages"),
        (user(*[TEXT] * 513), "messages"),
        (user({"type": "text", "text": "a" * 140_000}), "messages"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"every": 1}}, "stream_options.every"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": False}, "frequency_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"colour": None}, "colour"),
        ({"budget": 2}, "budget"),
        ({"budget": {"flops": 0.5, "strategy": "magic"}}, "budget.strategy"),
        ({"question": "x"}, "question"),
    ],
)
async def test_every_wrong_or_unsupported_field_is_a_400_that_names_it(serve, fields, param):
    async with serve() as served:
        response = await served.client.post(PATH, json=completion_body(None, "hi", **fields))
    error = problem(response, 400, "invalid_field", param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "eve", "safety_identifier": "e", "prompt_cache_key": "k"},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "n": 1},
        {"tools": None, "functions": [], "tool_choice": "none", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"},
        {"reasoning_effort": None, "audio": None, "stop": None, "seed": None, "stream": None},
        {"stream_options": None, "top_logprobs": None, "logprobs": False, "budget": None},
        user(IMAGE, {"type": "text", "text": QUESTION}),
        user(IMAGE, TEXT, name="eve"),
        user(IMAGE, TEXT, name=None),
        {
            "messages": [
                {"role": "system", "content": "x", "name": "rules"},
                *user(TEXT)["messages"],
            ]
        },
        user({"type": "image_url", "image_url": {"url": URL, "detail": "high"}}, TEXT),
    ],
)
async def test_values_that_change_nothing_are_taken(serve, fields):
    async with serve() as served:
        response = await served.client.post(PATH, json=completion_body(**fields))
    assert response.status_code == 200, response.text


async def test_another_model_is_a_404_that_says_what_is_served(serve):
    async with serve() as served:
        response = await served.client.post(PATH, json=completion_body(model="gpt-4o"))
    assert "'fake'" in problem(response, 404, "model_not_found", "model")["message"]


async def test_a_broken_image_is_named_by_its_place(serve):
    def at(url):
        return {"type": "image_url", "image_url": {"url": url}}

    hello = at("data:image/png;base64,aGVsbG8=")
    elsewhere = at("https://example.com/a.png")
    async with serve() as served:
        broken = await served.client.post(PATH, json=completion_body(**user(TEXT, hello)))
        remote = await served.client.post(PATH, json=completion_body(**user(elsewhere)))
    problem(broken, 400, "unsupported_image_format", "messages.0.content.1.image_url.url")
    problem(remote, 400, "remote_images_disabled", "messages.0.content.0.image_url.url")


async def test_a_budget_that_no_plan_meets_is_a_400_that_names_the_smallest(serve):
    async with serve() as served:
        response = await served.client.post(PATH, json=completion_body(budget=0.001))
    assert "smallest" in problem(response, 400, "budget_too_small", "budget")["message"]


async def test_only_json_is_taken(serve):
    async with serve() as served:
        form = await served.client.post(PATH, files={"image": b"x"}, data={"model": "fake"})
        text = await served.client.post(PATH, content=b"{", headers={"content-type": "text/plain"})
        cut = await served.client.post(
            PATH, content=b'{"model', headers={"content-type": "application/json"}
        )
    problem(form, 415, "unsupported_content_type")
    problem(text, 415, "unsupported_content_type")
    problem(cut, 400, "malformed_body")


async def test_several_images_turns_and_text_parts_reach_the_engine_in_their_order(serve):
    talk = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [TEXT, IMAGE, TEXT]},
        {"role": "assistant", "content": [TEXT], "refusal": None, "tool_calls": None},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "and this one"}]},
    ]
    async with serve() as served:
        answer = (await served.client.post(PATH, json=completion_body(messages=talk))).json()
    assert answer["choices"][0]["message"]["content"] == "and this one"
    assert answer["pruning"]["visual_tokens"]["total"] == 32


@pytest.mark.parametrize("said", [("Blue.", None), (None, "I cannot."), (None, None)])
async def test_an_answer_as_the_sdk_dumps_it_carries_the_conversation_on(serve, said):
    content, refusal = said
    answer = ChatCompletionMessage(role="assistant", content=content, refusal=refusal)
    dumped = answer.model_dump()
    assert {"tool_calls", "function_call", "audio", "annotations", "refusal"} <= set(dumped)
    talk: Any = [
        {"role": "user", "content": [IMAGE, TEXT], "name": "eve"},
        dumped,
        {"role": "user", "content": "and then"},
    ]
    async with serve() as served:
        client = openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="any", http_client=served.client, max_retries=0
        )
        completion = await client.chat.completions.create(model="fake", messages=talk)
    assert completion.choices[0].message.content == "and then"


async def test_text_alone_is_answered_at_full_compute_whatever_the_default_budget(serve):
    async with serve(default_budget=0.5) as served:
        text = await served.client.post(PATH, json=completion_body("hello there"))
        image = await served.client.post(PATH, json=completion_body())
    assert text.json()["pruning"]["budget"]["limit"] == 1
    assert text.json()["usage"]["prompt_tokens_details"]["image_tokens_before"] == 0
    assert image.json()["pruning"]["budget"]["limit"] == 0.5


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_generation_ends_at_the_length_and_at_stop_strings(serve, field):
    async with serve() as served:
        short = await served.client.post(PATH, json=completion_body(**{field: 2}))
        stopped = await served.client.post(PATH, json=completion_body(stop="big"))
    choice = short.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("what colour", "length")
    choice = stopped.json()["choices"][0]
    assert choice["message"]["content"] == "what colour is the "
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("num_top", [None, 0, 1, 20])
async def test_log_probabilities_come_with_tokens_bytes_and_the_likeliest(serve, num_top):
    body = completion_body("é 中", logprobs=True, top_logprobs=num_top)
    async with serve() as served:
        choice = (await served.client.post(PATH, json=body)).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == "é 中"
    assert [token["token"] for token in tokens] == ["é", " 中"]
    assert all(token["logprob"] == pytest.approx(math.log(0.5)) for token in tokens)
    assert all(len(token["top_logprobs"]) == min(num_top or 0, 1) for token in tokens)


async def test_a_deadline_ends_with_length_or_with_a_504(serve):
    long = completion_body("word " * 1000, max_tokens=1000, deadline_ms=500)
    async with serve(FakeRunner(step_seconds=0.01), max_running=1) as served:
        some, none = await asyncio.gather(
            served.client.post(PATH, json=long),
            served.client.post(PATH, json=completion_body(deadline_ms=1)),
        )
    assert some.json()["choices"][0]["finish_reason"] == "length"
    assert some.json()["choices"][0]["message"]["content"].startswith("word word")
    problem(none, 504, "deadline_exceeded")


async def test_a_full_queue_is_a_429_and_what_does_not_fit_a_503_each_with_retry_after(serve):
    runner = FakeRunner(step_seconds=0.02, faults={"big": EngineOutOfMemory("too large")})
    async with serve(runner, max_running=1, max_queue=1) as served:
        big = await served.client.post(PATH, json=completion_body("big"))
        posts = [served.client.post(PATH, json=completion_body()) for _ in range(6)]
        responses = await asyncio.gather(*posts)
    problem(big, 503, "engine_oom")
    refused = [each for each in responses if each.status_code != 200]
    assert 0 < len(refused) < 6
    problem(refused[0], 429, "queue_full")
    assert int(refused[0].headers["retry-after"]) >= 1


async def test_a_key_is_asked_for_where_the_operator_has_set_one(serve):
    async with serve(api_keys="secret") as served:
        refused = await served.client.post(PATH, json=completion_body())
        headers = {"Authorization": "Bearer secret"}
        answered = await served.client.post(PATH, json=completion_body(), headers=headers)
    problem(refused, 401, "invalid_api_key")
    assert answered.status_code == 200


async def test_a_client_that_hangs_up_cancels_its_request(serve):
    async with serve(FakeRunner(step_seconds=0.02)) as served:
        call = BareCall(served.app, PATH, completion_body("word " * 500))
        await served.until_running(1)
        call.hang_up()
        await asyncio.wait_for(call.task, 2)
        await served.until_running(0)
        assert served.runner.kv_bytes_held() == 0
