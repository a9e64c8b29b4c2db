"""Batches, workers and controllers over a real server; leases expire without sleeping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.queue import (
    CHUNK_LINES,
    BatchLease,
    Claim,
    NewBatch,
    NewFile,
    Queue,
    QueueLimits,
)
from allrounder_service.jobs.records import (
    ENDED_BATCHES,
    BatchStatus,
    FileRecord,
    JobState,
    LineRef,
    LineResult,
    TokenUsage,
)
from allrounder_service.jobs.redis_keys import key

SHA = "a" * 64
LONG_AGO_MS = 10_000_000


class Scene:
    """One queue over an empty server; every scene ends with a check of the invariants.

    Args:
        sources: scripts to run instead of the real ones.
        start: from where on the consumer groups read.
    """

    def __init__(
        self, client: Redis, *, sources: Mapping[str, str] | None = None, start: str = "0"
    ) -> None:
        self.client = client
        self.sources = sources
        self.start = start
        self.queue = Queue(client, QueueLimits(), sources=sources)

    def limit(self, **limits: int) -> None:
        self.queue = Queue(self.client, replace(self.queue.limits, **limits), sources=self.sources)

    async def prepare(self) -> None:
        await self.queue.prepare(start=self.start)

    async def create(self, id: str, lines: int = 1, tenant: str = "t", **more: Any) -> str:
        how, what = await self.queue.create(new_batch(id, lines, tenant, **more))
        assert what == id, (how, what)
        return how

    async def lease_batch(self, id: str) -> BatchLease:
        """Lease this batch, which makes earlier leases stale; others that are due stay due."""
        care = key(keys.DUE)
        found: Any = await self.client.zrange(care, 0, -1, withscores=True)
        others: dict[str, float] = dict(found)
        del others[id]
        await self.client.zadd(care, {id: 0})
        lease = await self.queue.lease_batch()
        assert lease is not None
        assert lease.batch == id
        if others:
            await self.client.zadd(care, others)
        return lease

    async def submit(self, id: str, lines: int = 1, tenant: str = "t", **more: Any) -> BatchLease:
        """A batch with all its lines submitted -> its lease, still held."""
        await self.create(id, lines, tenant, **more)
        lease = await self.lease_batch(id)
        assert await self.queue.begin(lease)
        for first in range(0, lines, CHUNK_LINES):
            last = min(first + CHUNK_LINES, lines)
            assert await self.queue.submit(lease, first, refs(first, last))
        return lease

    async def claim(self, worker: str, wanted: int = 1, *, running: int = 0) -> list[Claim]:
        return await self.queue.claim(worker, wanted, running=running)

    async def claim_one(self, worker: str = "w") -> Claim:
        claimed = await self.claim(worker)
        assert len(claimed) == 1
        return claimed[0]

    async def end(self, claim: Claim, text: str = "", state: JobState = JobState.DONE) -> bool:
        return await self.queue.done(claim.job, claim.fence, state, result(text))

    async def crash(self, *workers: str) -> int:
        """The leases of these workers expire and are reaped -> lines reclaimed."""
        await self.lapse(*workers)
        return await self.queue.reap()

    async def lapse(self, *workers: str) -> None:
        for lane in keys.LANES:
            name = key("lane", lane)
            for worker in workers:
                taken: list[dict[str, Any]] = await self.client.xpending_range(
                    name, keys.GROUP, "-", "+", 10_000, consumername=worker
                )
                for row in taken:
                    await self.client.execute_command(
                        *("XCLAIM", name, keys.GROUP, worker, 0, row["message_id"]),
                        *("IDLE", LONG_AGO_MS, "JUSTID"),
                    )

    async def finish(self, lease: BatchLease) -> bool:
        usage = TokenUsage(prompt_tokens=3, completion_tokens=2)
        return await self.queue.finalize(lease, [new_file(lease.batch)], usage)

    async def state(self, job: str) -> str:
        record = await self.queue.job(job)
        assert record is not None
        return record.state

    async def status(self, batch: str) -> BatchStatus:
        record = await self.queue.batch(batch)
        assert record is not None
        return record.status

    async def counts(self, batch: str) -> tuple[int, int, int]:
        """Lines that remain, are completed, have failed."""
        record = await self.queue.batch(batch)
        assert record is not None
        return record.remaining, record.completed, record.failed

    async def set_field(self, batch: str, **fields: int) -> None:
        for name, value in fields.items():
            await self.client.hset(key("batch", batch), name, str(value))

    async def withdraw_all(self, lease: BatchLease) -> None:
        record = await self.queue.batch(lease.batch)
        assert record is not None
        for first in range(0, record.submitted, CHUNK_LINES):
            assert await self.queue.withdraw(lease, first)

    async def serve(self, lease: BatchLease) -> None:
        """Every step of a controller for a batch until it must wait for lines to end."""
        queue = self.queue
        await queue.expire(lease)
        record = await queue.batch(lease.batch)
        assert record is not None
        if record.status is BatchStatus.VALIDATING:
            await queue.begin(lease)
            record = await queue.batch(lease.batch)
            assert record is not None
        if record.ending:
            await self.withdraw_all(lease)
        elif record.status is BatchStatus.IN_PROGRESS:
            for first in range(record.submitted, record.total, CHUNK_LINES):
                last = min(first + CHUNK_LINES, record.total)
                await queue.submit(lease, first, refs(first, last))
        await self.finish(lease)
        if (record := await queue.batch(lease.batch)) and record.status in ENDED_BATCHES:
            for first in range(0, record.submitted or 1, CHUNK_LINES):
                await queue.sweep(lease, first)
        await queue.hand_back(lease)

    async def run_dry(self, worker: str = "last") -> int:
        """One good worker and one controller, until nothing is left to do -> lines done."""
        num_done = 0
        for _ in range(1_000):
            if lease := await self.queue.lease_batch():
                await self.serve(lease)
            elif claimed := await self.claim(worker, 16):
                for each in claimed:
                    assert await self.end(each)
                num_done += len(claimed)
            else:
                return num_done
        raise AssertionError("the queue never comes to rest")

    async def violations(self) -> list[str]:
        return await find_violations(self.client)

    async def dump(self) -> dict[str, Any]:
        """Everything but times, counters of events and who was seen last."""
        names = sorted([name async for name in self.client.scan_iter(count=1000)])
        names = [name for name in names if name not in map(key, ("workers", "stats", "reaped"))]
        kinds = await self._pipe([("TYPE", name) for name in names])
        found = await self._pipe(
            [READ[kind](name) for name, kind in zip(names, kinds, strict=True)]
        )
        lanes = [name for name in names if name.startswith(key("lane"))]
        pending = await self._pipe([("XPENDING", name, keys.GROUP) for name in lanes])
        store = dict(zip(names, found, strict=True)) | {
            f"{name} pending": rows for name, rows in zip(lanes, pending, strict=True)
        }
        for name, value in store.items():
            if name.startswith((key(keys.DUE), key("batches"), key("files"))):
                value.sort()
            for field in [field for field in value if str(field).endswith("_ms")]:
                del value[field]
        return store

    async def _pipe(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        async with self.client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()


READ: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "hash": lambda name: ("HGETALL", name),
    "stream": lambda name: ("XRANGE", name, "-", "+"),
    "zset": lambda name: ("ZRANGE", name, 0, -1),
    "set": lambda name: ("SMEMBERS", name),
    "list": lambda name: ("LRANGE", name, 0, -1),
    "string": lambda name: ("GET", name),
}


@asynccontextmanager
async def connected(url: str):
    client = Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


def new_batch(id: str, lines: int = 1, tenant: str = "t", **more: Any) -> NewBatch:
    values: dict[str, Any] = {
        "endpoint": "/v1/chat",
        "input_file_id": "file-in",
        "input_sha256": SHA,
        "completion_window": "24h",
        "window_seconds": 86_400,
    }
    return NewBatch(id=id, tenant=tenant, lines=lines, **(values | more))


def refs(first: int, last: int) -> list[LineRef]:
    return [LineRef(sha256=SHA, offset=100 * line, length=100) for line in range(first, last)]


def result(text: str = "") -> LineResult:
    return LineResult(status=200, sha256=SHA, code=text or None)


def new_file(batch: str) -> NewFile:
    record = FileRecord(
        id=f"file-of-{batch}",
        tenant="t",
        filename="output.jsonl",
        purpose="batch_output",
        bytes=10,
        lines=1,
        sha256="b" * 64,
        created_at=0,
    )
    return NewFile(role="output_file_id", file=record)
