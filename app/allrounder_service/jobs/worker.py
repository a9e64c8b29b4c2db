"""A worker: claims lines when the engine has free slots, executes them and publishes the results.

It knows the engine only through what main hands it: free slots, progress, and how a line is
answered.
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

from allrounder_service.jobs.execution import (
    LineHandler,
    LineOutcome,
    Volume,
    execute,
    outcome_of,
)
from allrounder_service.jobs.heartbeat import (
    CloseConnection,
    HeartbeatThread,
    Leases,
    Progress,
    SendHeartbeat,
)
from allrounder_service.jobs.queue import Claim, HeartbeatReply, Queue
from allrounder_service.jobs.redis_keys import HEARTBEAT_SECONDS
from allrounder_service.jobs.tasks import (
    MAX_OUTAGE_SECONDS,
    MIN_OUTAGE_SECONDS,
    retry_with_backoff,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 1.0, 30.0
_STOP_SECONDS = 10.0


def num_prefetched(slots: int) -> int:
    """Lines to claim beyond the engine's slots, so that a freed slot is filled in the same step.

    A line that is claimed only when a slot is free misses a step, which is a tenth or more of its
    time in the engine. Heartbeats keep its lease, so claiming it early costs nothing.
    """
    return max(1, slots // 4)


def worker_name() -> str:
    """Never the same twice, so that a restarted worker is not mistaken for the crashed one."""
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
        answer: LineHandler,
        *,
        free_slots: Callable[[int], int],
        progress: Progress,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.name = worker_name()
        self._queue, self._volume, self._answer = queue, volume, answer
        self._free_slots, self._progress = free_slots, progress
        self._poll_seconds = poll_seconds
        self._leases = Leases()
        # By job and fencing token: a stale execution of a line may still end beside the new one.
        self._executing: dict[tuple[str, int], asyncio.Task[LineOutcome]] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._slot_freed = asyncio.Event()
        self._pause_seconds = _MIN_PAUSE_SECONDS
        self._paused_until = 0.0
        self._stopping = False
        self._heartbeat = HeartbeatThread(
            lambda: self._open_connection(open_queue),
            self._leases,
            progress,
            seconds=heartbeat_seconds,
            on_reply=self._on_heartbeat,
        )

    async def run(self) -> None:
        """Claim and reap until stopped; waits out outages of Redis."""
        self._loop = asyncio.get_running_loop()
        self._heartbeat.start()
        await asyncio.gather(
            self._repeat_with_backoff(self._claim), self._repeat_with_backoff(self._reap)
        )

    async def stop(self) -> None:
        """Release the lines in execution, finish publishing those that have ended."""
        self._stopping = True
        self._slot_freed.set()
        retiring = asyncio.create_task(self._retire())
        executing = list(self._executing.values())
        for task in executing:
            task.cancel()
        if executing:
            await asyncio.wait(executing, timeout=_STOP_SECONDS)
            # The tasks that publish or release them start in the next turn of the loop.
            await asyncio.sleep(0)
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=_STOP_SECONDS)
        await asyncio.wait([retiring], timeout=_STOP_SECONDS)
        retiring.cancel()
        self._heartbeat.stop()
        if self._heartbeat.is_alive():
            await asyncio.to_thread(self._heartbeat.join, _STOP_SECONDS)

    async def _retire(self) -> None:
        """Let another worker run suspect lines at once if this one has the lease on that."""
        with suppress(RedisError, OSError):
            await self._queue.retire(self.name)

    async def _repeat_with_backoff(self, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat until stopped, with growing pauses up to 1 s while Redis is away."""
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
                longest = min(MAX_OUTAGE_SECONDS, MIN_OUTAGE_SECONDS * 2 ** min(failures, 10))
                await asyncio.sleep(random.uniform(longest / 2, longest))

    async def _claim(self) -> None:
        self._progress.note_loop_turn()
        self._slot_freed.clear()
        is_paused = time.monotonic() < self._paused_until
        num_free = 0 if is_paused else self._free_slots(len(self._executing))
        if num_free > 0:
            for claim in await self._queue.claim(self.name, num_free, running=len(self._leases)):
                self._start(claim)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds):
                await self._slot_freed.wait()

    async def _reap(self) -> None:
        await self._queue.reap()
        await asyncio.sleep(self._queue.limits.lease_ms / 1000 / 3)

    def _start(self, claim: Claim) -> None:
        for (job, fence), task in self._executing.items():
            if job == claim.job and fence != claim.fence:
                task.cancel()
        self._leases.hold(claim.job, claim.fence)
        task = asyncio.create_task(execute(claim, self._volume, self._answer), name=claim.job)
        self._executing[claim.job, claim.fence] = task
        task.add_done_callback(partial(self._on_executed, claim))

    def _on_executed(self, claim: Claim, task: asyncio.Task[LineOutcome]) -> None:
        self._executing.pop((claim.job, claim.fence), None)
        self._slot_freed.set()
        outcome = outcome_of(task)
        self._pause_on_storage_error(outcome)
        ending = asyncio.create_task(self._end(claim, outcome))
        self._publishing.add(ending)
        ending.add_done_callback(self._publishing.discard)

    def _pause_on_storage_error(self, outcome: LineOutcome) -> None:
        """A worker that cannot read the volume claims nothing for a while; the pauses double."""
        now = time.monotonic()
        if outcome.unreadable and now >= self._paused_until:
            longest = self._pause_seconds
            self._paused_until = now + random.uniform(longest / 2, longest)
            self._pause_seconds = min(2 * longest, _MAX_PAUSE_SECONDS)
        elif outcome.content:
            self._pause_seconds = _MIN_PAUSE_SECONDS

    async def _end(self, claim: Claim, outcome: LineOutcome) -> None:
        """Publish or release; the lease is held until volume and Redis have accepted it."""
        try:
            await retry_with_backoff(lambda: self._publish(claim, outcome))
        finally:
            self._leases.drop(claim.job, claim.fence)
            self._slot_freed.set()

    async def _publish(self, claim: Claim, outcome: LineOutcome) -> None:
        if outcome.release:
            await self._queue.release(claim.job, claim.fence, failed=outcome.failed)
            return
        result = outcome.result
        if outcome.content:
            batch = claim.job.partition("/")[0]
            sha256 = await asyncio.to_thread(self._volume.put_result, batch, outcome.content)
            result = result.model_copy(update={"sha256": sha256})
        if not await self._queue.done(claim.job, claim.fence, outcome.state, result):
            logger.warning("a stale result was refused", extra={"job": claim.job})

    def _on_heartbeat(self, held: Mapping[str, int], reply: HeartbeatReply) -> None:
        """On the heartbeat's thread: stop lines whose lease was lost or whose batch was stopped."""
        stopped = [(job, held[job]) for job in reply.lost | reply.stop]
        if stopped and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_executions, stopped)

    def _stop_executions(self, executions: Iterable[tuple[str, int]]) -> None:
        """Those only: a lost line may have been claimed again with a newer fencing token."""
        for execution in executions:
            if task := self._executing.get(execution):
                task.cancel()

    def _open_connection(
        self, open_queue: Callable[[], Queue]
    ) -> tuple[SendHeartbeat, CloseConnection]:
        queue = open_queue()

        async def send(held: Mapping[str, int]) -> HeartbeatReply:
            return await queue.heartbeat(self.name, held)

        async def close() -> None:
            await queue.client.aclose()

        return send, close
