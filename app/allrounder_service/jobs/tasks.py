"""How background tasks of batch jobs go on after a fault, and how they end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 5.0
_AGAIN_SECONDS = 0.02


async def persist(work: Callable[[], Awaitable[None]], *, task: str) -> None:
    """Do it until it returns. A failure is logged unless it is the one before once more.

    task: what waits for it, for the log.
    """
    delay, told = MIN_RETRY_SECONDS, ""
    while True:
        began = time.monotonic()
        try:
            return await work()
        except Exception as err:
            if time.monotonic() - began > MAX_RETRY_SECONDS:
                # It worked for a while, so this is another fault, though it may look the same.
                delay, told = MIN_RETRY_SECONDS, ""
            if repr(err) != told:
                logger.critical("%s failed and is tried again", task, exc_info=err)
            told = repr(err)
        await asyncio.sleep(delay)
        delay = min(2 * delay, MAX_RETRY_SECONDS)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel until it has ended; what it raises is not raised here.

    redis-py sends commands within `asyncio.wait_for`, which before Python 3.12 loses a cancellation
    that comes as the command has just been sent: the task goes on as if nothing had been said.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_SECONDS)
    await asyncio.gather(task, return_exceptions=True)
