"""The heartbeat of a worker: a thread that renews the leases of the lines it holds.

It beats only while the engine moves: a worker whose device hangs must lose its lines, not keep
them for ever. Thread and connection are its own, so that no long step of the engine delays a beat.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

from redis.exceptions import RedisError

from allrounder_service.jobs.queue import Beat

logger = logging.getLogger(__name__)

# Two intervals: a beat that fails is tried again before the next is due.
_RETRY_SECONDS = 0.5


class Leases:
    """Jobs this worker holds, with their fences; shared between the loop and the heartbeat."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, job: str, fence: int) -> None:
        with self._lock:
            self._held[job] = fence

    def drop(self, job: str, fence: int) -> None:
        """Of that execution only: the line may have come back with another fence."""
        with self._lock:
            if self._held.get(job) == fence:
                del self._held[job]

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._held)


class Progress:
    """Whether the worker moves: the engine steps when it has work, and the event loop turns.

    Args:
        num_steps: the engine's step counter.
        is_busy: whether the engine has work.
        hang_seconds: how long a step may take.
    """

    def __init__(
        self, num_steps: Callable[[], int], is_busy: Callable[[], bool], *, hang_seconds: float
    ) -> None:
        self._num_steps, self._is_busy = num_steps, is_busy
        self._hang_seconds = hang_seconds
        self._seen = -1
        self._stepped = self._turned = time.monotonic()

    def turned(self) -> None:
        """The event loop is alive; it says so itself."""
        self._turned = time.monotonic()

    @property
    def is_moving(self) -> bool:
        """Asked at every beat: what it saw last time is what it compares with."""
        now, steps = time.monotonic(), self._num_steps()
        if steps != self._seen or not self._is_busy():
            self._seen, self._stepped = steps, now
        oldest = min(self._stepped, self._turned)
        return now - oldest < self._hang_seconds


class Heart(threading.Thread):
    """Beats until stopped. What a beat says of the leases it was for, by job with their fences,
    is handed to `on_beat` on the heart's own thread.

    Args:
        open_beat: opens a connection on this thread's event loop -> the call that beats with it,
            and the call that closes it.
    """

    def __init__(
        self,
        open_beat: Callable[
            [],
            tuple[Callable[[Mapping[str, int]], Awaitable[Beat]], Callable[[], Awaitable[None]]],
        ],
        leases: Leases,
        progress: Progress,
        *,
        seconds: float,
        on_beat: Callable[[Mapping[str, int], Beat], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._open_beat = open_beat
        self._leases, self._progress = leases, progress
        self._seconds, self._on_beat = seconds, on_beat
        self._stopped = threading.Event()
        self._is_failing = False

    def stop(self) -> None:
        """From then on leases run out. The thread ends soon."""
        self._stopped.set()

    def run(self) -> None:
        asyncio.run(self._beat_on())

    async def _beat_on(self) -> None:
        beat, close = self._open_beat()
        was_moving = True
        while not await asyncio.to_thread(self._stopped.wait, self._seconds):
            is_moving = self._progress.is_moving
            if was_moving and not is_moving:
                logger.error("the engine does not move: its lines are left to other workers")
            was_moving = is_moving
            if is_moving:
                await self._beat_once(beat)
        await close()

    async def _beat_once(self, beat: Callable[[Mapping[str, int]], Awaitable[Beat]]) -> None:
        held = self._leases.snapshot()
        if not held:
            return
        for _ in range(2):
            try:
                self._on_beat(held, await beat(held))
                self._is_failing = False
                return
            except (RedisError, OSError) as err:
                if not self._is_failing:
                    logger.warning("heartbeats fail: %s", type(err).__name__)
                self._is_failing = True
                await asyncio.sleep(min(_RETRY_SECONDS, self._seconds))
