"""Batches that are cancelled, whose finalizer is killed, whose answers are lost on the way."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from itertools import pairwise

import httpx2
import pytest

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.facade import BatchOrder, Jobs
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.records import NEXT_STATUS, BatchStatus, derived_file_id
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import PageRequest
from tests.jobs import finalizer
from tests.jobs.serving import ENDPOINT, FINAL, Executor, input_of, problem, serving

SEED = 20

TIMES = ("created_at", "in_progress_at", "cancelling_at", "finalizing_at")


def reachable(first):
    """Every status that may follow this one, itself included."""
    found, fresh = {first}, {first}
    while fresh:
        fresh = {after for each in fresh for after in NEXT_STATUS[each]} - found
        found |= fresh
    return found


def is_legal(path):
    return all(later in reachable(status) for status, later in pairwise(path))


async def watch(served, id):
    """-> the batch when it has ended, and every status that was seen until then."""
    path: list[BatchStatus] = []
    while not path or path[-1] not in FINAL:
        # Not over HTTP: hundreds of polls a second would leave the executor no time.
        path.append((await served.queue.batch(id)).status)
        await asyncio.sleep(0.02)
    return await served.batch(id), path


async def expire_now(served, id):
    """As if the clock had reached the end of its window."""
    client = served.queue.client
    await client.hset(key("batch", id), "expires_ms", "0")
    await client.zadd(key(keys.DUE), {id: 0})


async def end_one(served, chance, idx):
    """One batch, cancelled or expired once some of its lines are answered -> what it came to."""
    lines = chance.choice([1, 7, 40, 150, 600])
    made = await served.create(input_of(lines))
    watching = asyncio.create_task(watch(served, made["id"]))
    enough = int(lines * chance.random() ** 2)
    while (await served.queue.batch(made["id"])).completed < enough:
        await asyncio.sleep(0.02)
    if idx % 3 == 2:
        await expire_now(served, made["id"])
    else:
        answer = await served.http.post(f"/v1/batches/{made['id']}/cancel")
        if answer.status_code != 200:
            problem(answer, 409, "batch_ended")
    done, path = await asyncio.wait_for(watching, 60)
    assert is_legal(path), path
    output = await served.content(done["output_file_id"])
    error = await served.content(done["error_file_id"])
    seen = Counter(line["custom_id"] for line in output + error)
    assert seen == Counter(f"line-{idx}" for idx in range(lines))
    counts = {"total": lines, "completed": len(output), "failed": len(error)}
    assert done["request_counts"] == counts
    codes = {line["error"]["code"] for line in error}
    assert codes <= {f"batch_{done['status']}"}
    times = [done[name] for name in TIMES if done[name] is not None]
    assert times == sorted(times)
    return done["status"], bool(output) and bool(error)


@pytest.mark.timeout(500)
async def test_r24_a_cancelled_or_expired_batch_names_every_line_once(
    redis_url, tmp_path, long_form
):
    chance = random.Random(SEED)
    rounds, at_once = (50, 5) if long_form else (10, 5)
    began, found = time.monotonic(), []
    async with serving(redis_url, tmp_path) as served:
        executor = Executor(served.queue, served.store, seconds=0.005, at_once=32, seed=SEED)
        async with executor.running():
            for first in range(0, rounds, at_once):
                batches = range(first, first + at_once)
                found += await asyncio.gather(*(end_one(served, chance, idx) for idx in batches))
        await served.settled()
    ends = Counter(status for status, _ in found)
    mixed = sum(is_mixed for _, is_mixed in found)
    print(
        f"R-24 seed {SEED}: {rounds} batches, {dict(ends)}, {mixed} with both files, "
        f"{executor.num_done} lines answered, {time.monotonic() - began:.0f} s"
    )
    assert ends["cancelled"]
    assert ends["expired"]
    assert mixed


class Scene:
    """A batch that only a finalizer is missing, without any server."""

    def __init__(self, url, folder):
        self.url, self.folder = url, folder
        self.client = connect(url)
        self.store = BlobStore(folder)
        self.jobs = Jobs(self.client, self.store, finalizer.options())

    async def prepare(self, num_lines):
        self.store.prepare()
        upload = self.jobs.upload()
        bad = input_of(1, status=500).replace("line-0", "bad")
        upload.write(f"{input_of(num_lines - 1)}\n{bad}".encode())
        file = await self.jobs.add_file("t", upload.commit(), filename="in", seconds=None)
        order = BatchOrder(
            endpoint=ENDPOINT,
            input_file_id=file.id,
            completion_window="24h",
            window_seconds=86_400,
        )
        self.id = (await self.jobs.create_batch("t", order)).id
        await self.jobs.queue.prepare()
        async with Executor(self.jobs.queue, self.store, at_once=64).running():
            while (await self.batch()).remaining:
                if (await self.batch()).submitted < num_lines:
                    await self.jobs.controller.step()
                await asyncio.sleep(0.01)
        assert (await self.batch()).status is BatchStatus.FINALIZING

    async def batch(self):
        return await self.jobs.batch("t", self.id)

    async def play(self, mode, *numbers):
        """-> what `tests.jobs.finalizer` says."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.jobs.finalizer", self.url, str(self.folder), mode),
            *map(str, numbers),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return json.loads(out)

    async def check(self, num_lines):
        """One output file with every line, one error file with the bad one, nothing else."""
        async with asyncio.timeout(60):
            while not (await self.batch()).swept:
                await self.jobs.controller.step()
        batch = await self.batch()
        assert batch.status is BatchStatus.COMPLETED
        assert (batch.completed, batch.failed) == (num_lines - 1, 1)
        assert batch.output_file_id == derived_file_id(self.id, "output")
        assert batch.error_file_id == derived_file_id(self.id, "error")
        page = await self.jobs.list_files("t", PageRequest(limit=100), purpose="batch_output")
        assert {each.id for each in page.items} == {batch.output_file_id, batch.error_file_id}
        for record in page.items:
            with await self.jobs.open_file(record) as file:
                lines = [json.loads(line) for line in file]
            assert len(lines) == record.lines
            wanted = ["bad"] if record.lines == 1 else [f"line-{i}" for i in range(num_lines - 1)]
            assert [line["custom_id"] for line in lines] == wanted
        blobs = {path.name for path in self.store.blobs.rglob("*") if path.is_file()}
        assert blobs == {batch.input_sha256} | {each.sha256 for each in page.items}
        assert list(self.store.drafts.iterdir()) == list(self.store.results.iterdir()) == []
        assert await find_violations(self.client) == []


@pytest.fixture
async def scene(redis_url, tmp_path):
    made = Scene(redis_url, tmp_path / "files")
    yield made
    await made.client.aclose()


@pytest.mark.timeout(500)
async def test_r25_a_finalizer_killed_again_and_again_leaves_one_whole_file(scene, long_form):
    rounds, num_lines = (20, 1500) if long_form else (5, 300)
    began = time.monotonic()
    await scene.prepare(num_lines)
    ended = await scene.play("kill", rounds, num_lines, SEED)
    await scene.check(num_lines)
    print(
        f"R-25 seed {SEED}: {rounds} finalizers of {num_lines} lines, {ended}, "
        f"{time.monotonic() - began:.0f} s"
    )
    assert ended == {"killed": rounds, "left_drafts": rounds - 1}


@pytest.mark.timeout(200)
async def test_a_frozen_finalizer_that_wakes_changes_nothing(scene):
    await scene.prepare(100)
    assert await scene.play("freeze") == {"was_stopped": True, "woke_and_ended": True}
    await scene.check(100)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("lost", ["a response", "the input"])
async def test_a_batch_ends_even_where_the_volume_lost_something(scene, lost):
    await scene.prepare(4)
    batch = await scene.batch()
    if lost == "a response":
        good = await scene.jobs.queue.line_ends(scene.id, 0, 1)
        (scene.store.results / scene.id / f"{good[0].result.sha256}.json").write_bytes(b"{")
    else:
        scene.store.blob_path(batch.input_sha256).unlink()
    while not (batch := await scene.batch()).swept:
        await scene.jobs.controller.step()
    assert batch.status is BatchStatus.COMPLETED
    if lost == "the input":
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        return
    record = await scene.jobs.file("t", batch.error_file_id)
    with await scene.jobs.open_file(record) as file:
        first, bad = (json.loads(line) for line in file)
    assert (first["custom_id"], first["response"]) == ("line-0", None)
    assert first["error"]["code"] == "result_lost"
    assert (bad["custom_id"], bad["error"]) == ("bad", None)
    assert (await scene.jobs.file("t", batch.output_file_id)).lines == 2


class LossyProxy:
    """Passes every request on; the answer of some never comes back."""

    def __init__(self, port, chance, *, share):
        self.port, self.chance, self.share = port, chance, share
        self.num_lost = 0

    async def serve(self, reader, writer):
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.port)
        sending = asyncio.create_task(_copy(reader, upstream))
        answer = await upstream_reader.read(65_536)
        if self.chance.random() < self.share:
            self.num_lost += 1
        else:
            writer.write(answer)
            await writer.drain()
        sending.cancel()
        for end in (writer, upstream):
            end.close()
        await asyncio.gather(sending, return_exceptions=True)


async def _copy(reader, writer):
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def insist(client, body, key):
    """POST until an answer comes through, as a client with a key may."""
    while True:
        try:
            headers = {"Idempotency-Key": key, "Connection": "close"}
            answer = await client.post("/v1/batches", json=body, headers=headers)
        except httpx2.TransportError:
            continue
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]


@pytest.mark.timeout(500)
async def test_r5_a_batch_sent_three_times_over_a_bad_line_is_made_once(
    redis_url, tmp_path, long_form
):
    num_batches = 500 if long_form else 50
    chance, began = random.Random(SEED), time.monotonic()
    async with serving(redis_url, tmp_path) as served:
        file = await served.upload(input_of(1))
        proxy = LossyProxy(int(served.url.rpartition(":")[2]), chance, share=0.3)
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        limits = httpx2.Limits(max_keepalive_connections=0)
        made = []
        async with (
            listening,
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=60
            ) as client,
        ):
            for idx in range(num_batches):
                body = {
                    "input_file_id": file["id"],
                    "endpoint": ENDPOINT,
                    "completion_window": "24h",
                    "metadata": {"idx": str(idx)},
                }
                ids = await asyncio.gather(*(insist(client, body, f"key-{idx}") for _ in range(3)))
                assert len(set(ids)) == 1
                made.append(ids[0])
        other = await served.http.post(
            "/v1/batches", json=body, headers={"Idempotency-Key": "key-0"}
        )
        problem(other, 409, "idempotency_key_reused")
        page = await served.jobs.list_batches("public", PageRequest(limit=1000))
        assert {each.id for each in page.items} == set(made)
        assert len(made) == len(set(made)) == num_batches
        async with Executor(served.queue, served.store, at_once=64).running():
            for id in made:
                await served.until(id, "completed")
        await served.settled()
    print(
        f"R-5 seed {SEED}: {num_batches} batches, {proxy.num_lost} answers lost, "
        f"{time.monotonic() - began:.0f} s"
    )
    assert proxy.num_lost
