"""Lines of a batch: a trace each, of its own, that names the batch and the line."""

from __future__ import annotations

import asyncio
import json

import pytest

from allrounder.engine.fake import FakeRunner
from allrounder.errors import StepFailed
from tests.api.calls import chat_body
from tests.jobs.servers import BINARIES, running_server

pytestmark = pytest.mark.timeout(120)

CALLER = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
QUESTIONS = ["what is left", "boom", "what is right"]


def input_of(bodies):
    lines = [
        {"custom_id": f"line-{idx}", "method": "POST", "url": "/v1/chat", "body": body}
        for idx, body in enumerate(bodies)
    ]
    return "\n".join(json.dumps(line) for line in lines)


async def create(client, bodies):
    upload = await client.post(
        "/v1/files",
        files={"file": ("in.jsonl", input_of(bodies))},
        data={"purpose": "batch"},
        headers=CALLER,
    )
    assert upload.status_code == 200, upload.text
    body = {
        "input_file_id": upload.json()["id"],
        "endpoint": "/v1/chat",
        "completion_window": "24h",
    }
    created = await client.post("/v1/batches", json=body, headers=CALLER)
    assert created.status_code == 200, created.text
    return created.json()["id"]


async def until(client, id, *statuses):
    async with asyncio.timeout(60):
        while True:
            found = (await client.get(f"/v1/batches/{id}")).json()
            if found["status"] in statuses:
                return found
            await asyncio.sleep(0.05)


async def results(client, batch):
    """Answers by custom id."""
    lines = []
    for id in filter(None, (batch["output_file_id"], batch["error_file_id"])):
        lines += (await client.get(f"/v1/files/{id}/content")).text.splitlines()
    return {line["custom_id"]: line for line in map(json.loads, lines)}


async def test_each_execution_of_a_line_is_the_root_of_a_trace(serve, receiver, tmp_path):
    runner = FakeRunner(step_seconds=0.01, faults={"boom": StepFailed("lost")})
    settings = {"data_dir": tmp_path / "data", "otlp_endpoint": receiver.url}
    with running_server(BINARIES[0], tmp_path / "redis") as server:
        async with serve(runner, redis_url=server.url, **settings) as client:
            id = await create(client, [chat_body(question=each) for each in QUESTIONS])
            batch = await until(client, id, "completed")
            answers = await results(client, batch)
    roots = sorted(receiver.roots, key=lambda root: root.attributes["allrounder.batch.line"])
    assert len({root.trace_id for root in roots}) == len(roots)
    lines = [root.attributes["allrounder.batch.line"] for root in roots]
    # What fails is executed beside others twice, then alone.
    assert lines == [0, 1, 1, 1, 2]
    for idx, root in zip(lines, roots, strict=True):
        response = answers[f"line-{idx}"]["response"]
        assert (root.name, root.kind, root.parent) == ("chat fake", "CONSUMER", "")
        assert root.attributes["allrounder.batch.id"] == id
        assert root.attributes["allrounder.batch.line"] == idx
        assert root.attributes["allrounder.request.id"] == response["request_id"]
        assert "http.route" not in root.attributes
        stages = receiver.below(root)
        assert {"queue", "encode", "plan", "prefill"} <= {stage.name for stage in stages}
    for idx, root in ((0, roots[0]), (2, roots[-1])):
        assert root.status == ("UNSET", "")
        told = answers[f"line-{idx}"]["response"]["body"]
        assert root.attributes["gen_ai.response.id"] == told["id"]
    assert {root.status for root in roots[1:4]} == {("ERROR", "step_failed")}


async def test_a_cancelled_line_is_marked(serve, receiver, tmp_path):
    runner = FakeRunner(step_seconds=0.02)
    settings = {"data_dir": tmp_path / "data", "otlp_endpoint": receiver.url}
    with running_server(BINARIES[0], tmp_path / "redis") as server:
        async with serve(
            runner, redis_url=server.url, batch_lease_seconds=0.6, **settings
        ) as client:
            id = await create(client, [chat_body(question="word " * 1000, max_tokens=1000)])
            async with asyncio.timeout(60):
                while not runner.running:
                    await asyncio.sleep(0.01)
            await client.post(f"/v1/batches/{id}/cancel")
            await until(client, id, "cancelled")
    assert receiver.root.attributes["allrounder.cancelled"] is True
    assert receiver.root.status == ("UNSET", "")
