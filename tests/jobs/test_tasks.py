"""Background tasks end although the library may lose a cancellation."""

from __future__ import annotations

import asyncio
import random

from app.jobs.connection import connect
from app.jobs.tasks import end


async def test_a_task_of_redis_calls_always_ends(redis_url):
    client, chance = connect(redis_url), random.Random(0)

    async def ask_on():
        while True:
            await client.get("x")
            await asyncio.sleep(0.001)

    async with asyncio.timeout(8):
        for _ in range(30):
            task = asyncio.create_task(ask_on())
            await asyncio.sleep(chance.uniform(0, 0.004))
            await end(task)
            assert task.done()
    await client.aclose()
