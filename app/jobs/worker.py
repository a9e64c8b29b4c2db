"""A worker: claims lines when the engine has room, executes them and publishes how they ended.

Knows the engine by what main hands it: how many lines fit, whether it moves, and how to answer one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from redis.exceptions import RedisError

from app.jobs.beat import Heart, Leases, Progress
from app.jobs.ids import derived_line_id
from app.jobs.keys import BEAT_SECONDS
from app.jobs.queue import Queue
from app.jobs.records import LineRef, LineResult
from app.jobs.states import JobState
from app.jobs.transitions import Beat, Claim

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
MAX_ATTEMPTS = 3
RETRY_SECONDS = 1.0
_MAX_BACKOFF_SECONDS = 2.0
_LAST_WORDS_SECONDS = 10.0
# The engine is going away: the line is another worker's, or this one's after a restart.
GIVE_BACK = frozenset({"draining", "engine_dead", "loading"})
TRY_AGAIN = frozenset({"engine_oom", "queue_full"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An HTTP status and body, as the line's url would have answered."""

    status: int
    body: Mapping[str, Any]

    @property
    def code(self) -> str:
        error = self.body.get("error")
        return str(error.get("code", "")) if isinstance(error, Mapping) else ""


class Answer(Protocol):
    """Answers one line, `job` of its batch. Cancelling the call cancels the request."""

    async def __call__(
        self, url: str, body: Mapping[str, Any], *, tenant: str, id: str, job: str
    ) -> Answered: ...


class Volume(Protocol):
    """Where inputs and results lie. Its methods block, so they are called in threads."""

    def read(self, sha256: str, offset: int, length: int) -> bytes: ...

    def put_result(self, batch: str, data: bytes) -> str:
        """Durable when it returns -> SHA-256."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """How an execution ended: with something to publish, or not by itself."""

    state: JobState = JobState.FAILED
    content: bytes = b""
    result: LineResult = field(default_factory=lambda: LineResult(code="internal_error"))
    give_back: bool = False


def look_ahead(slots: int) -> int:
    """Lines to hold beyond the engine's slots, so that a slot is taken again in the same step.

    A line that is claimed only when a slot is free misses a step, which is a tenth or more of its
    time in the engine. Its lease is kept by beats, so holding it ahead costs nothing.
    """
    return max(1, slots // 4)


def worker_name() -> str:
    """Never the same twice, so that a restarted worker is not taken for the one that died."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


def _outcome_of(task: asyncio.Task[_Outcome]) -> _Outcome:
    if task.cancelled():
        return _Outcome(give_back=True)
    if (err := task.exception()) is not None:
        logger.error("a line could not be executed", exc_info=err, extra={"job": task.get_name()})
        return _Outcome()
    return task.result()


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
        self._executing: dict[str, asyncio.Task[_Outcome]] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._room = asyncio.Event()
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
        executing = list(self._executing.values())
        for task in executing:
            task.cancel()
        if executing:
            await asyncio.wait(executing, timeout=_LAST_WORDS_SECONDS)
            # Their ends are told by tasks that begin once they have ended.
            await asyncio.sleep(0)
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=_LAST_WORDS_SECONDS)
        self._heart.stop()
        if self._heart.is_alive():
            await asyncio.to_thread(self._heart.join, _LAST_WORDS_SECONDS)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; the longer Redis is away, the longer the wait, up to 2 s."""
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
        room = self._free_slots(len(self._executing))
        if room > 0:
            for claim in await self._queue.claim(self.name, room, running=len(self._leases)):
                self._begin(claim)
        try:
            await asyncio.wait_for(self._room.wait(), self._poll_seconds)
        except TimeoutError:
            return

    async def _reap_on(self) -> None:
        await self._queue.reap()
        await asyncio.sleep(self._queue.limits.lease_ms / 1000 / 3)

    def _begin(self, claim: Claim) -> None:
        self._leases.hold(claim.job, claim.fence)
        task = asyncio.create_task(self._respond(claim), name=claim.job)
        self._executing[claim.job] = task
        task.add_done_callback(partial(self._executed, claim))

    def _executed(self, claim: Claim, task: asyncio.Task[_Outcome]) -> None:
        if self._executing.get(claim.job) is task:
            del self._executing[claim.job]
        self._room.set()
        ending = asyncio.create_task(self._end(claim, _outcome_of(task)))
        self._publishing.add(ending)
        ending.add_done_callback(self._publishing.discard)

    async def _respond(self, claim: Claim) -> _Outcome:
        line = await asyncio.to_thread(self._read_line, claim.ref)
        batch, _, idx = claim.job.partition("/")
        id = derived_line_id(batch, int(idx))
        answered = await self._answer_patiently(claim, line, id)
        if answered.code in GIVE_BACK:
            return _Outcome(give_back=True)
        body = dict(answered.body)
        usage = body.get("usage") or {}
        content = json.dumps(
            {"status_code": answered.status, "request_id": id, "body": body}, ensure_ascii=False
        ).encode()
        result = LineResult(
            status=answered.status,
            code=answered.code or None,
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
        )
        state = JobState.DONE if answered.status == 200 else JobState.FAILED
        return _Outcome(state=state, content=content, result=result)

    def _read_line(self, ref: LineRef) -> Mapping[str, Any]:
        line: Mapping[str, Any] = json.loads(self._volume.read(ref.sha256, ref.offset, ref.length))
        return line

    async def _answer_patiently(self, claim: Claim, line: Mapping[str, Any], id: str) -> Answered:
        attempt, url, body = 1, line["url"], line["body"]
        while True:
            answered = await self._answer(url, body, tenant=claim.tenant, id=id, job=claim.job)
            if attempt >= MAX_ATTEMPTS or answered.code not in TRY_AGAIN:
                return answered
            await asyncio.sleep(random.uniform(0, RETRY_SECONDS * 2**attempt))
            attempt += 1

    async def _end(self, claim: Claim, outcome: _Outcome) -> None:
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

    async def _tell(self, claim: Claim, outcome: _Outcome) -> None:
        if outcome.give_back:
            await self._queue.release(claim.job, claim.fence)
            return
        result = outcome.result
        if outcome.content:
            batch = claim.job.partition("/")[0]
            sha256 = await asyncio.to_thread(self._volume.put_result, batch, outcome.content)
            result = result.model_copy(update={"sha256": sha256})
        if not await self._queue.done(claim.job, claim.fence, outcome.state, result):
            logger.warning("a stale result was refused", extra={"job": claim.job})

    def _hear(self, beat: Beat) -> None:
        """On the heart's thread: lines that are no longer ours, or not wanted any more."""
        if (stopped := beat.lost | beat.stop) and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_lines, stopped)

    def _stop_lines(self, jobs: frozenset[str]) -> None:
        for job in jobs:
            if task := self._executing.get(job):
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
