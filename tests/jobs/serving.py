"""The app with batch jobs on a real socket, and a tiny executor that plays the worker."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace

import httpx2
import openai
import uvicorn

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.facade import Jobs, JobsOptions
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.records import JobState, LineResult
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.tasks import cancel_and_wait
from allrounder_service.main import create_app
from allrounder_service.settings import Settings

ENDPOINT = "/v1/chat/completions"
FINAL = {"completed", "failed", "expired", "cancelled"}


class QuietServer(uvicorn.Server):
    def capture_signals(self):
        return nullcontext()


class Served:
    """A running app. `http` is a plain client of the first key; `queue` looks behind the scenes."""

    def __init__(self, url, jobs, keys):
        self.url = url
        self.jobs = jobs
        self.queue = jobs.queue
        self.store = jobs.store
        self.http = self.as_tenant(keys[0] if keys else None)
        self.keys = keys

    def as_tenant(self, api_key):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=60)

    def sdk(self, kind=openai.AsyncOpenAI, url=None, **options):
        return kind(
            base_url=f"{url or self.url}/v1",
            api_key=self.keys[0] if self.keys else "none",
            timeout=60,
            **options,
        )

    async def upload(self, data, *, client=None, **fields):
        response = await (client or self.http).post(
            "/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch", **fields}
        )
        assert response.status_code == 200, response.text
        return response.json()

    async def create(self, data, *, client=None, headers=None, **fields):
        file = await self.upload(data, client=client)
        body = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        response = await (client or self.http).post(
            "/v1/batches", json=body | fields, headers=headers
        )
        assert response.status_code == 200, response.text
        return response.json()

    async def batch(self, id):
        response = await self.http.get(f"/v1/batches/{id}")
        assert response.status_code == 200, response.text
        return response.json()

    async def until(self, id, *statuses, seconds=60):
        """-> the batch, once its status is one of these (by default: it has ended)."""
        async with asyncio.timeout(seconds):
            while (found := await self.batch(id))["status"] not in (statuses or FINAL):
                await asyncio.sleep(0.1)
        return found

    async def content(self, file_id):
        """Lines of a file, none where there is no file."""
        if file_id is None:
            return []
        response = await self.http.get(f"/v1/files/{file_id}/content")
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    async def settled(self):
        """Waits until the controllers have cleaned up; asserts that nothing is left over."""
        async with asyncio.timeout(30):
            while True:
                names = [
                    name async for name in self.queue.client.scan_iter(match=key("batch", "*"))
                ]
                swept = [await self.queue.client.hget(name, "swept") for name in names]
                if set(swept) <= {"1"}:
                    break
                await asyncio.sleep(0.05)
        assert await find_violations(self.queue.client) == []
        assert list(self.store.results.iterdir()) == []
        assert list(self.store.drafts.iterdir()) == []


@asynccontextmanager
async def serving(redis_url, folder, *, keys=(), key_file=None, with_jobs=True, **options):
    """`options` are those of JobsOptions."""
    async with AsyncExitStack() as stack:
        client = connect(redis_url)
        stack.push_async_callback(client.aclose)
        jobs = Jobs(client, BlobStore(folder / "files"), JobsOptions(poll_seconds=0.1, **options))
        await jobs.start()
        stack.push_async_callback(jobs.stop)
        settings = Settings.model_validate(
            {
                "log_level": "error",
                "drain_seconds": 1,
                "api_keys": keys if key_file is None else (),
                "api_keys_file": key_file,
                "embedded_redis": False,
            }
        )
        app = create_app(settings, _make_engine)
        if with_jobs:
            app.state.services = replace(app.state.services, jobs=lambda: jobs)
        listener = socket.create_server(("127.0.0.1", 0))
        stack.callback(listener.close)
        server = QuietServer(
            uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False)
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stop, server, task)
        served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}", jobs, keys)
        stack.push_async_callback(served.http.aclose)
        while not server.started:
            await asyncio.sleep(0.005)
        yield served


async def _stop(server, task):
    server.should_exit = True
    await task


def _make_engine(settings, observer):
    return Engine(FakeRunner, max_running=4, max_queue=4, observer=observer)


class Executor:
    """Claims lines and answers each with its own body; one that asks for a status gets it."""

    def __init__(self, queue, store, *, name="executor", seconds=0.0, at_once=8, seed=0):
        self.queue, self.store, self.name = queue, store, name
        self.seconds, self.at_once = seconds, at_once
        self.random = random.Random(seed)
        self.num_done = 0

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            await cancel_and_wait(task)

    async def _run(self):
        await self.queue.prepare()
        while True:
            claims = await self.queue.claim(self.name, self.at_once, running=0)
            if not claims:
                await asyncio.sleep(0.01)
            await asyncio.gather(*map(self._execute, claims))

    async def _execute(self, claim):
        await asyncio.sleep(self.random.uniform(0, 2 * self.seconds))
        beat = await self.queue.heartbeat(self.name, {claim.job: claim.fence})
        if claim.job in beat.lost:
            return
        if claim.job in beat.stop:
            await self.queue.done(claim.job, claim.fence, JobState.CANCELLED, LineResult())
            return
        ref = claim.ref
        line = json.loads(self.store.read(ref.sha256, ref.offset, ref.length))
        status = line["body"].get("status", 200)
        body = {"echo": line["body"], "custom_id": line["custom_id"]}
        data = json.dumps({"status_code": status, "request_id": "req", "body": body}).encode()
        batch = claim.job.partition("/")[0]
        result = LineResult(
            status=status,
            sha256=self.store.put_result(batch, data),
            prompt_tokens=3,
            completion_tokens=2,
        )
        state = JobState.DONE if status == 200 else JobState.FAILED
        published = await self.queue.done(claim.job, claim.fence, state, result)
        self.num_done += published


def request_line(custom_id, **body):
    line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line)


def input_of(num_lines, **body):
    return "\n".join(request_line(f"line-{idx}", idx=idx, **body) for idx in range(num_lines))


def problem(response, status, code, param=None):
    """Asserts the envelope with its exact status, code and param."""
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    return error
