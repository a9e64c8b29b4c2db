"""Background tasks go on after faults, and end although the library may lose a cancellation."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise

from allrounder_service.jobs import tasks
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.tasks import cancel_and_wait, supervise


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
            await cancel_and_wait(task)
            assert task.done()
    await client.aclose()


class Fault(Exception):
    pass


async def test_work_that_fails_is_done_again_and_each_failure_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(tasks, "MIN_RETRY_SECONDS", 0.001)
    left = [Fault("one"), Fault("one"), Fault("two"), Fault("two"), None]

    async def work():
        if (fault := left.pop(0)) is not None:
            raise fault

    async with asyncio.timeout(8):
        await supervise(work, task="the work")
    assert not left
    assert [record.exc_info[1].args for record in caplog.records] == [("one",), ("two",)]


async def test_work_that_fails_is_done_less_and_less_often(monkeypatch):
    monkeypatch.setattr(tasks, "MAX_RETRY_SECONDS", 0.4)
    began, times = time.monotonic(), []

    async def work():
        times.append(time.monotonic() - began)
        if len(times) < 5:
            raise Fault

    async with asyncio.timeout(8):
        await supervise(work, task="the work")
    pauses = [later - sooner for sooner, later in pairwise(times)]
    least = [0.1, 0.2, 0.4, 0.4]
    assert all(pause >= 0.9 * wanted for pause, wanted in zip(pauses, least, strict=True))


async def test_work_that_always_fails_ends_when_it_is_cancelled():
    async def work():
        raise Fault

    task = asyncio.create_task(supervise(work, task="the work"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(8):
        await cancel_and_wait(task)
    assert task.cancelled()
