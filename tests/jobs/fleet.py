"""Worker processes that are killed, frozen and replaced, and batches for them to work on."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from redis.exceptions import RedisError

from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.queue import CHUNK_LINES, BatchLease, NewBatch, Queue
from allrounder_service.jobs.records import JobState, LineRef

WEEK_SECONDS = 7 * 24 * 3600


def questions(count: int, poison: Sequence[int] = ()) -> list[str]:
    return [f"poison {n}" if n in poison else f"question {n}" for n in range(count)]


async def load_batch(
    queue: Queue, store: BlobStore, asked: Sequence[str], *, tenant: str = "t"
) -> str:
    """A batch of these questions, begun and submitted, without the service."""
    lines = [
        json.dumps(
            {
                "custom_id": str(n),
                "method": "POST",
                "url": "/v1/chat",
                "body": {"question": question},
            }
        ).encode()
        + b"\n"
        for n, question in enumerate(asked)
    ]
    sha256 = store_input(store, b"".join(lines))
    batch = f"batch_{secrets.token_urlsafe(18)}"
    await queue.create(
        NewBatch(
            id=batch,
            tenant=tenant,
            endpoint="/v1/chat",
            input_file_id="file-of-a-test",
            input_sha256=sha256,
            lines=len(lines),
            completion_window="7d",
            window_seconds=WEEK_SECONDS,
        )
    )
    lease = await _lease_batch(queue, batch)
    await queue.begin(lease)
    offset, refs = 0, []
    for line in lines:
        refs.append(LineRef(sha256=sha256, offset=offset, length=len(line)))
        offset += len(line)
    for first in range(0, len(refs), CHUNK_LINES):
        assert await queue.submit(lease, first, refs[first : first + CHUNK_LINES])
    await queue.hand_back(lease)
    return batch


async def _lease_batch(queue: Queue, batch: str) -> BatchLease:
    while True:
        lease = await queue.lease_batch()
        assert lease is not None, "a new batch is due"
        if lease.batch == batch:
            return lease


def store_input(store: BlobStore, content: bytes) -> str:
    store.prepare()
    draft = store.draft()
    draft.write(content)
    return draft.commit()


@dataclass
class Fleet:
    """Some worker processes; one that ends is replaced when `mend` is called."""

    url: str
    data: Path
    size: int = 2
    options: Sequence[str] = ()
    members: list[subprocess.Popen[bytes]] = field(default_factory=list)
    num_started: int = 0
    num_died: int = 0

    def __enter__(self) -> Fleet:
        self.mend()
        return self

    def __exit__(self, *exc: object) -> None:
        for member in self.members:
            member.send_signal(signal.SIGCONT)
            member.kill()
            member.wait()

    def mend(self) -> None:
        for member in list(self.members):
            if member.poll() is not None:
                self.num_died += 1
                self.members.remove(member)
        while len(self.members) < self.size:
            command = [sys.executable, "-m", "tests.jobs.standin", self.url, str(self.data)]
            self.members.append(subprocess.Popen([*command, *self.options]))
            self.num_started += 1

    def kill_one(self, rng: Random) -> None:
        """kill -9, whatever it is doing."""
        member = rng.choice(self.members)
        member.kill()
        member.wait()

    def freeze(self, member: subprocess.Popen[bytes]) -> None:
        os.kill(member.pid, signal.SIGSTOP)

    def thaw(self, member: subprocess.Popen[bytes]) -> None:
        os.kill(member.pid, signal.SIGCONT)


async def num_ended(queue: Queue, batches: Sequence[str]) -> int:
    """Lines of these batches that have ended; -1 while the server is away."""
    try:
        records = [await queue.batch(batch) for batch in batches]
    except (RedisError, OSError):
        return -1
    return sum(record.total - record.remaining for record in records if record)


async def wait_until_ended(
    queue: Queue, batches: Sequence[str], fleet: Fleet, *, seconds: float
) -> None:
    """Keep the fleet at its size until every line has ended."""
    deadline = time.monotonic() + seconds
    while True:
        fleet.mend()
        records = [await queue.batch(batch) for batch in batches]
        left = sum(record.remaining for record in records if record)
        if not left:
            return
        assert time.monotonic() < deadline, f"{left} lines have not ended; {await queue.census()}"
        await asyncio.sleep(0.02)


async def check_all(
    queue: Queue, store: BlobStore, batch: str, asked: Sequence[str]
) -> Counter[str]:
    """Every line ended once with the right answer, and nothing is left behind -> states."""
    assert await find_violations(queue.client) == []
    found: Counter[str] = Counter()
    for n, question in enumerate(asked):
        job = await queue.job(f"{batch}/{n}")
        assert job is not None
        assert job.published == 1
        found[job.state] += 1
        if job.state == JobState.DONE:
            assert job.result is not None
            assert job.result.sha256 is not None
            answer = json.loads(store.read_result(batch, job.result.sha256))
            assert answer["body"]["answer"] == question[::-1]
    census = await queue.census()
    assert census.lines == census.backlog == 0
    assert all(lane.waiting == lane.running == 0 for lane in census.lanes.values())
    return found
