"""The end of background tasks that talk to Redis."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_SECONDS = 0.02


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel until it has ended; what it raises is not raised here.

    redis-py sends commands within `asyncio.wait_for`, which before Python 3.12 loses a cancellation
    that comes as the command has just been sent: the task goes on as if nothing had been said.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN_SECONDS)
    await asyncio.gather(task, return_exceptions=True)
