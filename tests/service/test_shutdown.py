"""SIGTERM and kill -9 of real processes at work: nobody who was admitted is left without an end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.queue import Queue, QueueLimits
from allrounder_service.jobs.records import JobState
from allrounder_service.jobs.redis_keys import key
from tests.jobs.servers import BINARIES, RunningServer, running_server
from tests.service.live import live_process

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
SCENE = next((ROOT / "app" / "allrounder_service" / "web" / "examples").glob("scene-10.webp"))
WORKER = ("-c", "from allrounder_service.cli import main; main()", "worker")
GRACE_SECONDS = 60
NUM_CALLERS = 100
NUM_LINES = 80


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(BINARIES[0], tmp_path / "redis") as server:
        yield server


def _line(idx: int, image: str) -> str:
    body = {"image": image, "question": "Describe the picture.", "budget": 0.5}
    line = {"custom_id": f"line-{idx}", "method": "POST", "url": "/v1/chat", "body": body}
    return json.dumps(line)


async def _submit(http: httpx2.AsyncClient, image: str) -> str:
    data = "\n".join(_line(idx, image) for idx in range(NUM_LINES)).encode()
    file = await http.post(
        "/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}
    )
    order = {
        "input_file_id": file.json()["id"],
        "endpoint": "/v1/chat",
        "completion_window": "24h",
    }
    made = await http.post("/v1/batches", json=order)
    assert made.status_code == 200, made.text
    batch: str = made.json()["id"]
    return batch


async def _until(condition, *, seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def image() -> str:
    import base64

    return "data:image/webp;base64," + base64.b64encode(SCENE.read_bytes()).decode()


async def test_r10_sigterm_answers_who_was_admitted_and_gives_lines_back(
    own_redis: RunningServer, tmp_path: Path, image: str
) -> None:
    settings: dict[str, Any] = {
        "redis_url": own_redis.url,
        "data_dir": tmp_path / "data",
        "max_queue": 2 * NUM_CALLERS,
        "drain_seconds": GRACE_SECONDS,
    }
    with live_process(tmp_path / "log", **settings) as (url, process):
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=200))
            probe = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=5))
            client = connect(own_redis.url)
            stack.push_async_callback(client.aclose)
            queue = Queue(client, QueueLimits())
            batch = await _submit(http, image)

            async def some_have_ended() -> bool:
                record = await queue.batch(batch)
                return record is not None and record.completed > 2

            await _until(some_have_ended)
            body = {"image": image, "question": "Describe the picture.", "budget": 0.5}
            asked = [
                asyncio.create_task(http.post("/v1/chat", json=body)) for _ in range(NUM_CALLERS)
            ]
            await _until(lambda: _all_admitted(probe, asked))
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await _until(lambda: _is_refused(probe), seconds=5)
            refused_after = time.monotonic() - began
            answers = await asyncio.gather(*asked)
            assert await asyncio.to_thread(process.wait, GRACE_SECONDS + 10) == 0
            seconds = time.monotonic() - began
            codes = {answer.status_code for answer in answers}
            jobs = [await queue.job(f"{batch}/{n}") for n in range(NUM_LINES)]
            states = {job.state for job in jobs if job}
            crashes = sum(job.crashes for job in jobs if job)
            given_back = sum(
                job.attempts > 0 and job.state == JobState.QUEUED for job in jobs if job
            )
            print(
                f"R-10 callers={NUM_CALLERS} codes={codes} 503 after {refused_after:.2f} s, "
                f"gone after {seconds:.1f} s, lines given back={given_back} crashes={crashes}"
            )
            assert codes == {200}
            assert refused_after < 1
            assert states <= {JobState.QUEUED, JobState.DONE}
            assert crashes == 0
            assert given_back > 0, "no line was running: the check proved nothing"
            assert await find_violations(client) == []


async def _all_admitted(probe: httpx2.AsyncClient, asked: list[asyncio.Task[Any]]) -> bool:
    """Those that are answered and those that the engine has, lines of the batch left out."""
    num_answered = sum(task.done() for task in asked)
    text = (await probe.get("/metrics")).text
    found = {
        line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"
    }
    names = ("num_requests_running", "num_requests_waiting")
    in_engine = sum(found[f"allrounder_{name}"] for name in names)
    return in_engine - found["allrounder_jobs_running"] + num_answered >= len(asked)


async def _is_refused(probe: httpx2.AsyncClient) -> bool:
    ready = await probe.get("/readyz")
    chat = await probe.post("/v1/chat", json={"question": "?"})
    return (ready.status_code, chat.status_code) == (503, 503)


async def test_a_worker_killed_at_work_loses_nothing_and_another_takes_over(
    own_redis: RunningServer, tmp_path: Path, image: str
) -> None:
    settings: dict[str, Any] = {
        "redis_url": own_redis.url,
        "data_dir": tmp_path / "data",
        "batch_lease_seconds": 2,
    }
    with (
        live_process(tmp_path / "log", batch_worker="false", **settings) as (url, _),
        live_process(tmp_path / "log1", arguments=WORKER, **settings) as (_, first),
        live_process(tmp_path / "log2", arguments=WORKER, **settings) as (worker_url, _),
    ):
        async with (
            httpx2.AsyncClient(base_url=url, timeout=60) as http,
            httpx2.AsyncClient(base_url=worker_url, timeout=60) as worker,
        ):
            batch = await _submit(http, image)

            async def is_at_work() -> bool:
                owners = [await client.hget(key("job", f"{batch}/{n}"), "owner") for n in range(40)]
                return any(owner and f"-{first.pid}-" in owner for owner in owners)

            client = connect(own_redis.url)
            await _until(is_at_work)
            first.kill()

            async def has_completed() -> bool:
                found = (await http.get(f"/v1/batches/{batch}")).json()
                return bool(found["status"] == "completed")

            await _until(has_completed)
            record = (await http.get(f"/v1/batches/{batch}")).json()
            stats = (await Queue(client, QueueLimits()).census()).stats
            print(f"worker killed: {record['request_counts']} {stats}")
            assert record["request_counts"] == {
                "total": NUM_LINES,
                "completed": NUM_LINES,
                "failed": 0,
            }
            assert stats["redelivered"] > 0
            assert (await worker.get("/v1/models")).status_code == 404, "a worker answers no chat"
            assert (await worker.get("/metrics")).status_code == 200
            await client.aclose()
