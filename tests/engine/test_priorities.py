"""Callers who wait hardly notice a backlog of batch jobs, and the backlog still moves (R-21)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from app.core import Priority, SamplingParams
from app.engine.base import Outcome, Running
from app.engine.engine import Engine
from app.engine.fake import FakeRunner, FakeRunning
from tests.engine.ledger import Ledger
from tests.tiny import chat_request

SLOTS = 16
# Of the embedded model on one core, in milliseconds: a step, and each row in it.
STEP_MS = 6.0
ROW_MS = 0.3
CLIENTS = 4
ANSWER = " ".join(["word"] * 12)


class PricedRunner(FakeRunner):
    """Keeps a clock of its own, so that a busy machine does not count as a slow engine."""

    clock_ms = 0.0
    num_steps = 0
    batch_shares = 0

    def step(self, work: Sequence[tuple[Running, int]]) -> list[Outcome]:
        for running, num_rows in work:
            assert isinstance(running, FakeRunning)
            self.clock_ms += ROW_MS * min(num_rows, running.num_pending or 1)
            self.batch_shares += running.request.priority is Priority.BATCH
        self.clock_ms += STEP_MS
        self.num_steps += 1
        return super().step(work)


async def _latencies(num_each: int, *, with_backlog: bool) -> tuple[list[float], float]:
    """Milliseconds of each interactive request, and the mean number of batch ones in a step."""
    runner, ids = PricedRunner(step_seconds=0.001), count()
    engine = Engine(lambda: runner, max_running=SLOTS, max_queue=256, observer=Ledger())
    await engine.start()

    async def ask(priority: Priority) -> float:
        began = runner.clock_ms
        sampling = SamplingParams(max_tokens=64)
        request = chat_request(question=ANSWER, sampling=sampling, priority=priority)
        request = replace(request, id=f"r{next(ids)}")
        await (await engine.submit(request)).result()
        return runner.clock_ms - began

    async def batch_on() -> None:
        while True:
            await ask(Priority.BATCH)

    async def client() -> list[float]:
        return [await ask(Priority.INTERACTIVE) for _ in range(num_each)]

    backlog = [asyncio.create_task(batch_on()) for _ in range(2 * SLOTS * with_backlog)]
    found = await asyncio.gather(*(client() for _ in range(CLIENTS)))
    share = runner.batch_shares / runner.num_steps
    for task in backlog:
        task.cancel()
    await asyncio.gather(*backlog, return_exceptions=True)
    await engine.stop(5)
    return [each for latencies in found for each in latencies], share


@pytest.mark.timeout(120)
async def test_r21_a_backlog_hardly_slows_those_who_wait_and_still_moves(long_form: bool) -> None:
    num_each = 250 if long_form else 50
    alone, _ = await _latencies(num_each, with_backlog=False)
    beside, batch_share = await _latencies(num_each, with_backlog=True)
    slower = np.percentile(beside, 99) / np.percentile(alone, 99)
    print(f"R-21 n={CLIENTS * num_each} p99 x{slower:.2f} batch in a step {batch_share:.1f}")
    assert slower <= 1.2
    assert batch_share >= SLOTS / 10
