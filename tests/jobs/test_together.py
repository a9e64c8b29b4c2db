"""Batch jobs and callers in one process: the whole app, a real engine, a real server of the queue.

Only the model is a stand-in, so that lines meet in steps as they do on a device.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import pytest

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import scan_hashes
from allrounder_service.main import create_app
from allrounder_service.settings import Settings
from tests.api.calls import chat_body
from tests.jobs.servers import BINARIES, running_server

pytestmark = pytest.mark.timeout(90)

LEASE_SECONDS = 1.0
ANSWER = "one two three four five six seven eight"


class App:
    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def ask(self, question: str = ANSWER) -> int:
        return (await self.http.post("/v1/chat", json=chat_body(question=question))).status_code

    async def submit(self, questions) -> str:
        lines = [
            {
                "custom_id": str(n),
                "method": "POST",
                "url": "/v1/chat",
                "body": chat_body(question=question),
            }
            for n, question in enumerate(questions)
        ]
        data = "\n".join(map(json.dumps, lines))
        files = {"file": ("in.jsonl", data)}
        file = await self.http.post("/v1/files", files=files, data={"purpose": "batch"})
        body = {
            "input_file_id": file.json()["id"],
            "endpoint": "/v1/chat",
            "completion_window": "24h",
        }
        return (await self.http.post("/v1/batches", json=body)).json()["id"]

    async def until(self, batch: str, what, seconds: float = 40):
        """-> the batch, once this is true of it; it must not be over before."""
        async with asyncio.timeout(seconds):
            while True:
                found = await self.http.get(f"/v1/batches/{batch}")
                if found.status_code == 200:
                    if what(found.json()):
                        return found.json()
                    assert found.json()["status"] != "completed", found.json()
                await asyncio.sleep(0.05)

    async def ended(self, batch: str):
        """-> how many lines ended with which status."""
        found = await self.until(batch, lambda each: each["status"] == "completed")
        counts = Counter[int]()
        for name in ("output_file_id", "error_file_id"):
            if found[name]:
                content = await self.http.get(f"/v1/files/{found[name]}/content")
                for line in content.text.splitlines():
                    counts[json.loads(line)["response"]["status_code"]] += 1
        return counts


@asynccontextmanager
async def running(url: str, folder, runner: FakeRunner, *, max_running: int, max_queue: int = 8):
    settings = Settings.model_validate(
        {
            "redis_url": url,
            "data_dir": folder,
            "log_level": "error",
            "drain_seconds": 1,
            "batch_lease_seconds": LEASE_SECONDS,
            "max_running": max_running,
            "max_queue": max_queue,
        }
    )

    def make_engine(settings, observer) -> Engine:
        limits = {"max_running": max_running, "max_queue": max_queue}
        return Engine(lambda: runner, observer=observer, **limits)

    app = create_app(settings, make_engine)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as http:
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            yield App(http)


@pytest.fixture(params=BINARIES)
def own_server(request, tmp_path):
    with running_server(request.param, tmp_path / "redis") as server:
        yield server


async def test_an_outage_of_the_queue_costs_no_line_and_no_caller(own_server, tmp_path):
    """The lines that ran when it came are lost and back at once, while they still run here."""
    runner = FakeRunner(step_seconds=0.4)
    async with running(own_server.url, tmp_path, runner, max_running=8) as app:
        batch = await app.submit([ANSWER] * 6)
        await app.until(batch, lambda _: len(runner.running) == 6)
        own_server.kill()
        await asyncio.sleep(2.5 * LEASE_SECONDS)
        own_server.start()
        assert await app.ended(batch) == {200: 6}
        assert await app.ask() == 200
        client = connect(own_server.url)
        jobs = await scan_hashes(client, key("job", ""))
        assert {job["crashes"] for job in jobs.values()} == {"0"}, "a living worker was blamed"
        assert await find_violations(client) == []
        await client.aclose()
        assert runner.running == {}


async def test_a_line_that_is_lost_and_comes_back_runs_once_more(redis_url, tmp_path):
    """Its lease is taken while the worker lives: both executions are in one engine."""
    runner = FakeRunner(step_seconds=0.2)
    async with running(redis_url, tmp_path, runner, max_running=8) as app:
        batch = await app.submit([ANSWER] * 4)
        await app.until(batch, lambda _: len(runner.running) == 4)
        client = connect(redis_url)
        lane, lost = key("lane", "batch"), None
        while lost is None:
            # A heartbeat may have renewed it meanwhile.
            for entry in await client.xpending_range(lane, "g", "-", "+", 10):
                at = (entry["consumer"], 0, entry["message_id"], "IDLE", 10_000_000, "JUSTID")
                await client.execute_command("XCLAIM", lane, "g", *at)
            lost = await client.hget(key("stats"), "lease_lost")
        assert await app.ended(batch) == {200: 4}
        await client.aclose()
        assert await app.ask() == 200


async def test_a_volume_that_is_away_for_a_while_costs_no_line(redis_url, tmp_path):
    runner = FakeRunner(step_seconds=0.05)
    async with running(redis_url, tmp_path, runner, max_running=2) as app:
        batch = await app.submit([ANSWER] * 12)
        await app.until(batch, lambda each: each["request_counts"]["completed"] >= 1)
        there = BlobStore(tmp_path / "files").blobs
        away = there.rename(tmp_path / "away")
        client = connect(redis_url)
        given_back = 0
        async with asyncio.timeout(20):
            while not given_back:
                jobs = await scan_hashes(client, key("job", ""))
                given_back = sum(job.get("slane") == "retry" for job in jobs.values())
                await asyncio.sleep(0.05)
        await client.aclose()
        away.rename(there)
        assert await app.ended(batch) == {200: 12}


async def test_callers_who_fill_the_queue_do_not_fail_lines(redis_url, tmp_path):
    runner = FakeRunner(step_seconds=0.01)
    async with running(redis_url, tmp_path, runner, max_running=2, max_queue=2) as app:
        batch = await app.submit([ANSWER] * 8)
        statuses = Counter[int]()

        async def call_on() -> None:
            while True:
                statuses[await app.ask()] += 1
                await asyncio.sleep(0.01)

        callers = [asyncio.create_task(call_on()) for _ in range(12)]
        try:
            assert await app.ended(batch) == {200: 8}
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        assert statuses[429] > 0, "the queue was never full: the run proved nothing"
        assert set(statuses) == {200, 429}


async def test_a_faulty_line_costs_its_neighbours_nothing(redis_url, tmp_path):
    runner = FakeRunner(step_seconds=0.01, faults={"poison": RuntimeError("a kernel failed")})
    async with running(redis_url, tmp_path, runner, max_running=8) as app:
        batch = await app.submit([ANSWER] * 5 + ["poison"] + [ANSWER] * 5)
        assert await app.ended(batch) == {200: 10, 500: 1}
        assert await app.ask() == 200


async def test_one_tenant_alone_can_fill_many_workers(redis_url, tmp_path):
    """Its window bounds what waits in the lane, not what runs."""
    runners = [FakeRunner(step_seconds=0.05) for _ in range(4)]
    start = partial(running, redis_url, tmp_path, max_running=32, max_queue=64)
    async with start(runners[0]) as app, start(runners[1]), start(runners[2]), start(runners[3]):
        batch = await app.submit([ANSWER] * 400)
        await app.until(batch, lambda _: all(len(each.running) == 32 for each in runners))
        assert await app.ended(batch) == {200: 400}
