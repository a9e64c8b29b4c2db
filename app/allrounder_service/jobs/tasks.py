"""How background tasks of batch jobs are retried after a fault, and how they are ended."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 5.0
MIN_OUTAGE_SECONDS = 0.05
MAX_OUTAGE_SECONDS = 1.0
_CANCEL_AGAIN_SECONDS = 0.02


async def retry_with_backoff(work: Callable[[], Awaitable[None]]) -> None:
    """Retry until it succeeds, while Redis or the volume is away; jittered pauses up to 1 s."""
    seconds = MIN_OUTAGE_SECONDS
    while True:
        try:
            return await work()
        except (RedisError, OSError):
            await asyncio.sleep(random.uniform(seconds / 2, seconds))
            seconds = min(2 * seconds, MAX_OUTAGE_SECONDS)


async def supervise(work: Callable[[], Awaitable[None]], *, task: str) -> None:
    """Start `work` again after any exception, until it returns; a repeated one is logged once.

    task: its name in the log.
    """
    delay, logged = MIN_RETRY_SECONDS, ""
    while True:
        began = time.monotonic()
        try:
            return await work()
        except Exception as err:
            if time.monotonic() - began > MAX_RETRY_SECONDS:
                # It worked for a while, so this is a new fault even if it looks the same.
                delay, logged = MIN_RETRY_SECONDS, ""
            if repr(err) != logged:
                logger.critical("%s failed and is tried again", task, exc_info=err)
            logged = repr(err)
        await asyncio.sleep(delay)
        delay = min(2 * delay, MAX_RETRY_SECONDS)


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel until it has ended; what it raises is not raised here.

    redis-py sends commands within `asyncio.wait_for`, which before Python 3.12 loses a cancellation
    that comes as the command has just been sent: the task goes on as if it was not cancelled.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_AGAIN_SECONDS)
    await asyncio.gather(task, return_exceptions=True)
