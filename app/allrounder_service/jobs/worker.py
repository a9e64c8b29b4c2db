"""A worker: claims lines when the engine has room, executes them and publishes how they ended.

Knows the engine by what main hands it: how many lines fit, whether it moves, and how to answer one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from redis.exceptions import RedisError

from allrounder_service.jobs.execution import Answer, Outcome, Volume, execute, outcome_of
from allrounder_service.jobs.heartbeat import Heart, Leases, Progress
from allrounder_service.jobs.queue import Beat, Claim, Queue
from allrounder_service.jobs.redis_keys import BEAT_SECONDS

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_MAX_BACKOFF_SECONDS = 1.0
_MIN_CLOSED_SECONDS, _MAX_CLOSED_SECONDS = 1.0, 30.0
_LAST_WORDS_SECONDS = 10.0


def look_ahead(slots: int) -> int:
    """Lines to hold beyond the engine's slots, so that a slot is taken again in the same step.

    A line that is claimed only when a slot is free misses a step, which is a tenth or more of its
    time in the engine. Its lease is kept by beats, so holding it ahead costs nothing.
    """
    return max(1, slots // 4)


def worker_name() -> str:
    """Never the same twice, so that a restarted worker is not taken for the one that died."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


class Worker:
    """One per process. `run` until cancelled or stopped.

    Args:
        queue: on the event loop's own connection.
        open_queue: a second one, for the heartbeat's thread.
        free_slots: how many more lines the engine has room for, given how many it works on.
    """

    def __init__(
        self,
        queue: Queue,
        open_queue: Callable[[], Queue],
        volume: Volume,
        answer: Answer,
        *,
        free_slots: Callable[[int], int],
        progress: Progress,
        beat_seconds: float = BEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.name = worker_name()
        self._queue, self._volume, self._answer = queue, volume, answer
        self._free_slots, self._progress = free_slots, progress
        self._poll_seconds = poll_seconds
        self._leases = Leases()
        # By job and fence: of a lost line an execution may still be ending when it comes back.
        self._executing: dict[tuple[str, int], asyncio.Task[Outcome]] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
        self._closed_seconds = _MIN_CLOSED_SECONDS
        self._closed_until = 0.0
        self._stopping = False
        self._heart = Heart(
            lambda: self._open_beat(open_queue),
            self._leases,
            progress,
            seconds=beat_seconds,
            on_beat=self._hear,
        )

    async def run(self) -> None:
        """Claim and reap until stopped; outages of Redis are waited out."""
        self._loop = asyncio.get_running_loop()
        self._heart.start()
        await asyncio.gather(self._patiently(self._claim_on), self._patiently(self._reap_on))

    async def stop(self) -> None:
        """Give back what is being executed, finish publishing what is done."""
        self._stopping = True
        self._room.set()
        retiring = asyncio.create_task(self._retire())
        executing = list(self._executing.values())
        for task in executing:
            task.cancel()
        if executing:
            await asyncio.wait(executing, timeout=_LAST_WORDS_SECONDS)
            # Their ends are told by tasks that begin once they have ended.
            await asyncio.sleep(0)
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=_LAST_WORDS_SECONDS)
        await asyncio.wait([retiring], timeout=_LAST_WORDS_SECONDS)
        retiring.cancel()
        self._heart.stop()
        if self._heart.is_alive():
            await asyncio.to_thread(self._heart.join, _LAST_WORDS_SECONDS)

    async def _retire(self) -> None:
        """Suspect lines shall not wait for a turn that this worker will never take."""
        with suppress(RedisError, OSError):
            await self._queue.retire(self.name)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; the longer Redis is away, the longer the wait, up to 1 s."""
        failures = 1
        while not self._stopping:
            try:
                if failures:
                    # A server that was emptied, or is new, has no lanes yet.
                    await self._queue.prepare()
                await work()
                failures = 0
            except (RedisError, OSError) as err:
                if failures <= 1:
                    logger.warning("batch jobs wait for Redis: %s", type(err).__name__)
                failures += 1
                longest = min(_MAX_BACKOFF_SECONDS, 0.05 * 2 ** min(failures, 10))
                await asyncio.sleep(random.uniform(longest / 2, longest))

    async def _claim_on(self) -> None:
        self._progress.turned()
        self._room.clear()
        is_open = time.monotonic() >= self._closed_until
        room = self._free_slots(len(self._executing)) if is_open else 0
        if room > 0:
            for claim in await self._queue.claim(self.name, room, running=len(self._leases)):
                self._begin(claim)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds):
                await self._room.wait()

    async def _reap_on(self) -> None:
        await self._queue.reap()
        await asyncio.sleep(self._queue.limits.lease_ms / 1000 / 3)

    def _begin(self, claim: Claim) -> None:
        for (job, fence), task in self._executing.items():
            if job == claim.job and fence != claim.fence:
                task.cancel()
        self._leases.hold(claim.job, claim.fence)
        task = asyncio.create_task(execute(claim, self._volume, self._answer), name=claim.job)
        self._executing[claim.job, claim.fence] = task
        task.add_done_callback(partial(self._executed, claim))

    def _executed(self, claim: Claim, task: asyncio.Task[Outcome]) -> None:
        self._executing.pop((claim.job, claim.fence), None)
        self._room.set()
        outcome = outcome_of(task)
        self._heed_volume(outcome)
        ending = asyncio.create_task(self._end(claim, outcome))
        self._publishing.add(ending)
        ending.add_done_callback(self._publishing.discard)

    def _heed_volume(self, outcome: Outcome) -> None:
        """A worker that cannot read leaves the lines to those who can, for longer and longer."""
        now = time.monotonic()
        if outcome.unreadable and now >= self._closed_until:
            pause = self._closed_seconds
            self._closed_until = now + random.uniform(pause / 2, pause)
            self._closed_seconds = min(2 * pause, _MAX_CLOSED_SECONDS)
        elif outcome.content:
            self._closed_seconds = _MIN_CLOSED_SECONDS

    async def _end(self, claim: Claim, outcome: Outcome) -> None:
        """Publish or give back once volume and Redis are there; the lease is held until then."""
        try:
            await self._patiently_once(lambda: self._tell(claim, outcome))
        finally:
            self._leases.drop(claim.job, claim.fence)
            self._room.set()

    async def _patiently_once(self, work: Callable[[], Awaitable[None]]) -> None:
        seconds = 0.05
        while True:
            try:
                return await work()
            except (RedisError, OSError):
                await asyncio.sleep(random.uniform(seconds / 2, seconds))
                seconds = min(2 * seconds, _MAX_BACKOFF_SECONDS)

    async def _tell(self, claim: Claim, outcome: Outcome) -> None:
        if outcome.give_back:
            await self._queue.release(claim.job, claim.fence, failed=outcome.failed)
            return
        result = outcome.result
        if outcome.content:
            batch = claim.job.partition("/")[0]
            sha256 = await asyncio.to_thread(self._volume.put_result, batch, outcome.content)
            result = result.model_copy(update={"sha256": sha256})
        if not await self._queue.done(claim.job, claim.fence, outcome.state, result):
            logger.warning("a stale result was refused", extra={"job": claim.job})

    def _hear(self, held: Mapping[str, int], beat: Beat) -> None:
        """On the heart's thread: lines that are no longer ours, or not wanted any more."""
        stopped = [(job, held[job]) for job in beat.lost | beat.stop]
        if stopped and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_executions, stopped)

    def _stop_executions(self, executions: Iterable[tuple[str, int]]) -> None:
        """Those only: a line that was lost may be back with another fence."""
        for execution in executions:
            if task := self._executing.get(execution):
                task.cancel()

    def _open_beat(
        self, open_queue: Callable[[], Queue]
    ) -> tuple[Callable[[Mapping[str, int]], Awaitable[Beat]], Callable[[], Awaitable[None]]]:
        queue = open_queue()

        async def beat(held: Mapping[str, int]) -> Beat:
            return await queue.beat(self.name, held)

        async def close() -> None:
            await queue.client.aclose()

        return beat, close
