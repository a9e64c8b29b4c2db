"""The heartbeat of a worker: a thread that renews the leases of the lines it executes.

It renews them only while the engine makes progress: a worker whose device hangs must lose its
lines to other workers. Thread and connection are its own, so that no long step of the engine delays
a heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

from redis.exceptions import RedisError

from allrounder_service.jobs.queue import HeartbeatReply

logger = logging.getLogger(__name__)

# Sends one heartbeat for these leases, fencing tokens by job.
SendHeartbeat = Callable[[Mapping[str, int]], Awaitable[HeartbeatReply]]
CloseConnection = Callable[[], Awaitable[None]]

# A heartbeat that fails is sent again before the next one is due.
_RETRY_SECONDS = 0.5


class Leases:
    """Jobs this worker holds, with their fencing tokens; shared by the loop and the heartbeat."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, job: str, fence: int) -> None:
        with self._lock:
            self._held[job] = fence

    def drop(self, job: str, fence: int) -> None:
        """Of that execution only: the line may have been claimed again with a newer token."""
        with self._lock:
            if self._held.get(job) == fence:
                del self._held[job]

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._held)


class Progress:
    """Whether the worker makes progress: the engine steps when busy, and the event loop turns.

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
        self._last_num_steps = -1
        self._step_time = self._loop_time = time.monotonic()

    def note_loop_turn(self) -> None:
        """Called by the event loop itself, as proof that it runs."""
        self._loop_time = time.monotonic()

    @property
    def is_progressing(self) -> bool:
        """Compares with what the previous call saw; read once for each heartbeat."""
        now, steps = time.monotonic(), self._num_steps()
        if steps != self._last_num_steps or not self._is_busy():
            self._last_num_steps, self._step_time = steps, now
        return now - min(self._step_time, self._loop_time) < self._hang_seconds


class HeartbeatThread(threading.Thread):
    """Sends heartbeats until stopped.

    Args:
        open_connection: opens a connection on this thread's event loop -> the call that sends a
            heartbeat with it, and the call that closes it.
        seconds: interval between heartbeats.
        on_reply: called on this thread with the leases that were sent and the reply to them.
    """

    def __init__(
        self,
        open_connection: Callable[[], tuple[SendHeartbeat, CloseConnection]],
        leases: Leases,
        progress: Progress,
        *,
        seconds: float,
        on_reply: Callable[[Mapping[str, int], HeartbeatReply], None],
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._open_connection = open_connection
        self._leases, self._progress = leases, progress
        self._seconds, self._on_reply = seconds, on_reply
        self._stopped = threading.Event()
        self._is_failing = False

    def stop(self) -> None:
        """From then on leases expire. The thread ends soon."""
        self._stopped.set()

    def run(self) -> None:
        asyncio.run(self._send_until_stopped())

    async def _send_until_stopped(self) -> None:
        send, close = self._open_connection()
        was_progressing = True
        while not await asyncio.to_thread(self._stopped.wait, self._seconds):
            is_progressing = self._progress.is_progressing
            if was_progressing and not is_progressing:
                logger.error("the engine makes no progress: the leases on its lines expire")
            was_progressing = is_progressing
            if is_progressing:
                await self._send_once(send)
        await close()

    async def _send_once(self, send: SendHeartbeat) -> None:
        held = self._leases.snapshot()
        if not held:
            return
        for _ in range(2):
            try:
                self._on_reply(held, await send(held))
                self._is_failing = False
                return
            except (RedisError, OSError) as err:
                if not self._is_failing:
                    logger.warning("heartbeats fail: %s", type(err).__name__)
                self._is_failing = True
                await asyncio.sleep(min(_RETRY_SECONDS, self._seconds))
