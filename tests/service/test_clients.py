"""Clients that others wrote, against a server process: the openai SDK, curl, litellm."""

from __future__ import annotations

import asyncio
import json
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.service.live import ROOT, live_server

pytestmark = pytest.mark.timeout(180)

EXAMPLE = ROOT / "allrounder" / "demo" / "example.png"
QUESTION = "Describe the largest shape."
CLIENTS = ROOT / ".clients" / "bin" / "python"


@pytest.fixture(scope="module")
def messages() -> list[dict[str, Any]]:
    url = "data:image/png;base64," + b64encode(EXAMPLE.read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def answer(live_url: str) -> str:
    """What /v1/chat says to the same question at the same budget."""
    response = httpx2.post(
        f"{live_url}/v1/chat",
        files={"image": EXAMPLE.read_bytes()},
        data={"question": QUESTION, "budget": "0.5"},
        timeout=60,
    )
    text: str = response.json()["answer"]
    return text


@pytest.fixture
def client(live_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live_url}/v1", api_key="any", max_retries=0) as client:
        yield client


def _extra(body: openai.BaseModel) -> dict[str, Any]:
    """What the SDK was given beside what it knows."""
    assert body.model_extra is not None
    return body.model_extra


def test_the_sdk_gets_a_completion_with_everything_it_knows(
    client: openai.OpenAI, messages: Any, answer: str
) -> None:
    completion = client.chat.completions.create(
        model="demo",
        messages=messages,
        max_completion_tokens=64,
        temperature=0,
        seed=1,
        stop=["zzz"],
        logprobs=True,
        top_logprobs=2,
        n=1,
        user="eve",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        response_format={"type": "text"},
        extra_body={"budget": 0.5, "explain": True},
    )
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == (answer, "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert completion.usage is not None
    assert completion.usage.total_tokens == (
        completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    (model,) = client.models.list().data
    assert completion.system_fingerprint == _extra(model)["fingerprint"]
    pruning = _extra(completion)["pruning"]
    assert pruning["flops"]["prefill_ratio"] <= 0.5
    assert len(pruning["kept"][0]["indices"]) == pruning["visual_tokens"]["kept"]


def test_the_sdk_carries_a_conversation_on_with_its_own_messages(
    client: openai.OpenAI, messages: Any
) -> None:
    first = client.chat.completions.create(model="demo", messages=messages)
    talk = [
        *messages,
        first.choices[0].message.model_dump(),
        {"role": "user", "content": "What colour is it?"},
    ]
    second = client.chat.completions.create(model="demo", messages=talk)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.choices[0].message.content


def test_the_sdk_streams(client: openai.OpenAI, messages: Any, answer: str) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"budget": 0.5},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == answer
    assert len([text for text in texts if text]) > 3
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    assert _extra(chunks[-1])["pruning"]["strategy"] == "par"


def test_the_sdks_stream_helper_puts_the_message_together(
    client: openai.OpenAI, messages: Any, answer: str
) -> None:
    with client.chat.completions.stream(
        model="demo", messages=messages, logprobs=True, extra_body={"budget": 0.5}
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == answer
    assert final.choices[0].logprobs is not None


async def test_the_async_sdk_asks_in_parallel_and_a_closed_stream_is_cancelled(
    live_url: str, messages: Any, answer: str
) -> None:
    async with openai.AsyncOpenAI(base_url=f"{live_url}/v1", api_key="any") as client:
        create = client.chat.completions.create
        asked = [
            create(model="demo", messages=messages, extra_body={"budget": 0.5}) for _ in range(4)
        ]
        completions = await asyncio.gather(*asked)
        assert {each.choices[0].message.content for each in completions} == {answer}
        stream = await create(model="demo", messages=messages, stream=True)
        async for _ in stream:
            break
        await stream.close()
        again = await create(model="demo", messages=messages, extra_body={"budget": 0.5})
    assert again.choices[0].message.content == answer


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "invalid_field", "n"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"budget": 0.001}}, openai.BadRequestError, "budget_too_small", "budget"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "invalid_field", "colour"),
        ({"max_tokens": 4000}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        (
            {"max_completion_tokens": 4000},
            openai.BadRequestError,
            "context_length_exceeded",
            "max_completion_tokens",
        ),
    ],
)
def test_the_sdk_raises_its_own_errors_with_code_and_param(
    client: openai.OpenAI,
    messages: Any,
    fields: Any,
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    with pytest.raises(kind) as raised:
        client.chat.completions.create(**{"model": "demo", "messages": messages, **fields})
    assert (raised.value.code, raised.value.param) == (code, param)


def test_the_sdk_comes_back_after_a_429(tmp_path: Path) -> None:
    fake = ("-m", "tests.api.fake_server")
    with live_server(
        tmp_path / "log", arguments=fake, max_running=1, max_queue=1, log_level="error"
    ) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=8) as client:

            def ask(_: int) -> str | None:
                talk: Any = [{"role": "user", "content": "one two three four"}]
                created = client.chat.completions.create(model="fake", messages=talk)
                return created.choices[0].message.content

            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(ask, range(6)))
        metrics = httpx2.get(f"{url}/metrics").text
    assert answers == ["one two three four"] * 6
    rejected = [line for line in metrics.splitlines() if "admission_rejections_total{" in line]
    assert sum(float(line.rpartition(" ")[2]) for line in rejected) > 0


def test_curl_gets_a_completion_and_a_stream(
    live_url: str, messages: Any, answer: str, tmp_path: Path
) -> None:
    def curl(**fields: Any) -> str:
        body = tmp_path / "body.json"
        body.write_text(
            json.dumps({"model": "demo", "messages": messages, "budget": 0.5, **fields})
        )
        address = f"{live_url}/v1/chat/completions"
        headers = ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer any"]
        command = ["curl", "-sS", "-N", address, *headers, "-d", f"@{body}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert json.loads(curl())["choices"][0]["message"]["content"] == answer
    *events, done = [line for line in curl(stream=True).splitlines() if line]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert ("".join(texts), done) == (answer, "data: [DONE]")


LITELLM = """
import json, sys
import litellm
litellm.suppress_debug_info = True
asked = json.load(sys.stdin)
common = dict(model="openai/demo", api_base=asked["url"], api_key="any", num_retries=0,
              messages=asked["messages"], extra_body={"budget": 0.5}, temperature=0)
whole = litellm.completion(**common, logprobs=True, top_logprobs=2)
chunks = list(litellm.completion(**common, stream=True, stream_options={"include_usage": True}))
try:
    litellm.completion(**{**common, "model": "openai/gpt-4o"})
except litellm.NotFoundError:
    refused = "NotFoundError"
print(json.dumps({
    "text": whole.choices[0].message.content,
    "num_logprobs": len(whole.choices[0].logprobs.content),
    "usage": whole.usage.total_tokens,
    "reason": whole.choices[0].finish_reason,
    "streamed": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
    "streamed_usage": [c.usage.total_tokens for c in chunks if getattr(c, "usage", None)],
    "refused": refused,
}))
"""


def test_litellm_gets_a_completion_a_stream_and_typed_errors(
    live_url: str, messages: Any, answer: str
) -> None:
    assert CLIENTS.exists(), "litellm is not there: `make test` installs it (tools/clients.sh)"
    ran = subprocess.run(
        [str(CLIENTS), "-c", LITELLM],
        input=json.dumps({"url": f"{live_url}/v1", "messages": messages}),
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    got = json.loads(ran.stdout.splitlines()[-1])
    assert got["text"] == got["streamed"] == answer
    assert got["reason"] == "stop"
    assert got["num_logprobs"] > 3
    assert got["streamed_usage"][-1] == got["usage"]
    assert got["refused"] == "NotFoundError"
