"""A worker process with a stand-in for the engine; each line takes a number of steps.

`python -m tests.jobs.standin URL DATA [options]`: the real worker, queue, heartbeat and volume;
only the answers are made up: a line's answer is its question spelled backwards.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.execution import LineResponse
from allrounder_service.jobs.heartbeat import Progress
from allrounder_service.jobs.queue import HeartbeatReply, Queue, QueueLimits
from allrounder_service.jobs.worker import Worker, num_prefetched

POISON = "poison"


class StandInEngine:
    """Continuous batching without a model: one step at a time serves everyone who is there."""

    def __init__(self, *, slots: int, step_seconds: float, steps: int) -> None:
        self.slots, self.steps = slots, steps
        self._step_seconds = step_seconds
        self.num_steps = 0
        self.num_running = 0
        self._stepped = asyncio.Event()
        self._wanted = asyncio.Event()
        self._places = asyncio.Semaphore(slots)

    def free_slots(self, executing: int) -> int:
        return self.slots + num_prefetched(self.slots) - executing

    def progress(self, hang_seconds: float) -> Progress:
        return Progress(
            lambda: self.num_steps, lambda: self.num_running > 0, hang_seconds=hang_seconds
        )

    async def step_on(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._step_seconds)
            self.num_steps += 1
            stepped, self._stepped = self._stepped, asyncio.Event()
            stepped.set()
            if not self.num_running:
                self._wanted.clear()

    async def __call__(
        self, url: str, body: Mapping[str, Any], *, tenant: str, id: str, job: str
    ) -> LineResponse:
        async with self._places:
            self.num_running += 1
            self._wanted.set()
            try:
                await self._run(is_poison=POISON in body["question"])
            finally:
                self.num_running -= 1
        usage = {"prompt_tokens": 7, "completion_tokens": self.steps}
        return LineResponse(status=200, body={"answer": body["question"][::-1], "usage": usage})

    async def _run(self, *, is_poison: bool) -> None:
        for step in range(self.steps):
            await self._stepped.wait()
            if is_poison and step == self.steps // 2:
                os.kill(os.getpid(), signal.SIGKILL)


class LateNewsQueue(Queue):
    """Renews leases in time; delays the replies, and so the news of lost leases."""

    def __init__(self, client: Redis, limits: QueueLimits, *, news_seconds: float) -> None:
        super().__init__(client, limits)
        self._news_seconds = news_seconds

    async def heartbeat(self, worker: str, leases: Mapping[str, int]) -> HeartbeatReply:
        said = await super().heartbeat(worker, leases)
        await asyncio.sleep(self._news_seconds)
        return said


async def work(args: argparse.Namespace) -> None:
    limits = QueueLimits(lease_ms=args.lease_ms, window=args.window)
    client = connect(args.url)
    store = BlobStore(args.data)
    store.prepare()
    engine = StandInEngine(slots=args.slots, step_seconds=args.step_ms / 1000, steps=args.steps)
    stepping = asyncio.create_task(engine.step_on())
    worker = Worker(
        Queue(client, limits),
        lambda: LateNewsQueue(connect(args.url), limits, news_seconds=args.news_ms / 1000),
        store,
        engine,
        free_slots=engine.free_slots,
        progress=engine.progress(args.hang_seconds),
        heartbeat_seconds=args.lease_ms / 6000,
    )
    running = asyncio.create_task(worker.run())
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await asyncio.wait([running, asyncio.create_task(ended.wait())], return_when="FIRST_COMPLETED")
    await worker.stop()
    await running
    stepping.cancel()
    await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("data", type=Path)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=10)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lease-ms", type=int, default=1000)
    parser.add_argument("--news-ms", type=float, default=0)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--hang-seconds", type=float, default=60)
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(work(parser.parse_args()))


if __name__ == "__main__":
    main()
