"""Every admitted request ends exactly once, and the engine lives: over the fake runner."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from allrounder.core import (
    ChatRequest,
    ChatResult,
    FinishReason,
    Priority,
    SamplingParams,
)
from allrounder.engine.engine import Engine, QueuedStream
from allrounder.engine.fake import KV_BYTES_ROW, FakeRunner
from allrounder.engine.protocols import EngineState, Outcome
from allrounder.engine.scheduling.driver import Driver
from allrounder.engine.scheduling.request import EngineRequest, ScheduledRows, SchedulerLimits
from allrounder.engine.scheduling.scheduler import Scheduler
from allrounder.errors import (
    AllrounderError,
    DeadlineExceeded,
    Draining,
    EngineDead,
    InternalError,
    Loading,
    QueueFull,
    RequestCancelled,
)
from tests.engine.ledger import Ledger
from tests.tiny import chat_request

LONG = " ".join(["word"] * 400)


class BrokenRunner(FakeRunner):
    """Its device is lost when the test says so and never comes back."""

    lost = False

    def step(self, work: Sequence[ScheduledRows]) -> list[Outcome]:
        if self.lost:
            raise RuntimeError("device lost")
        return super().step(work)


@asynccontextmanager
async def started(
    runner: FakeRunner, *, max_running: int = 4, max_queue: int = 8
) -> AsyncIterator[tuple[Engine, Ledger]]:
    ledger = Ledger()
    engine = Engine(lambda: runner, max_running=max_running, max_queue=max_queue, observer=ledger)
    await engine.start()
    try:
        yield engine, ledger
    finally:
        await engine.stop(0)
        assert not runner.running
        assert all(len(ends) == 1 for ends in ledger.ends.values())


def _ask(seed: int, question: str = "one two three", **fields: Any) -> ChatRequest:
    fields.setdefault("arrival", time.monotonic())
    return chat_request(seed, question=question, **fields)


async def test_many_requests_each_get_their_own_answer() -> None:
    async with started(FakeRunner(), max_queue=100) as (engine, ledger):
        streams = [await engine.submit(_ask(idx, f"answer {idx}")) for idx in range(40)]
        results = await asyncio.gather(*(stream.result() for stream in streams))
    assert [result.answer for result in results] == [f"answer {idx}" for idx in range(40)]
    assert len(ledger.ends) == 40


async def test_chunks_make_up_the_answer() -> None:
    async with started(FakeRunner()) as (engine, _):
        stream = await engine.submit(_ask(0, "to be or not"))
        text = "".join([chunk.text async for chunk in stream.chunks()])
        assert text == (await stream.result()).answer == "to be or not"


async def test_a_full_queue_is_refused_at_the_door_and_nothing_admitted_is_lost() -> None:
    runner = FakeRunner(step_seconds=0.01)
    async with started(runner, max_running=1, max_queue=2) as (engine, ledger):
        streams, refused = [], 0
        for idx in range(12):
            try:
                streams.append(await engine.submit(_ask(idx)))
            except QueueFull:
                refused += 1
        for stream in streams:
            assert (await stream.result()).answer
    assert refused == len(ledger.rejections) > 0
    assert len(ledger.ends) == len(streams)


async def test_cancelling_frees_the_slot_at_once() -> None:
    async with started(FakeRunner(step_seconds=0.005), max_running=1) as (engine, _):
        hog = await engine.submit(_ask(0, LONG, sampling=SamplingParams(max_tokens=400)))
        waiting = await engine.submit(_ask(1, "quick"))
        hog.cancel()
        with pytest.raises(RequestCancelled):
            await hog.result()
        assert (await asyncio.wait_for(waiting.result(), 2)).answer == "quick"


async def test_who_waits_for_memory_is_seen_from_outside_until_there_is_some() -> None:
    runner = FakeRunner(step_seconds=0.005, max_kv_bytes=600 * KV_BYTES_ROW)
    async with started(runner) as (engine, _):
        hog = await engine.submit(_ask(0, LONG, sampling=SamplingParams(max_tokens=400)))
        waiting = await engine.submit(_ask(1, LONG))
        async with asyncio.timeout(5):
            while engine.status().num_waiting_for_kv != 1:
                await asyncio.sleep(0.002)
        assert engine.status().num_running == 1
        hog.cancel()
        with pytest.raises(RequestCancelled):
            await hog.result()
        assert (await waiting.result()).answer
        assert engine.status().num_waiting_for_kv == 0


async def test_a_deadline_gives_what_there_is_or_an_error() -> None:
    async with started(FakeRunner(step_seconds=0.02), max_running=1) as (engine, _):
        now = time.monotonic()
        partial = await engine.submit(
            _ask(0, LONG, sampling=SamplingParams(max_tokens=400), deadline=now + 0.2)
        )
        hopeless = await engine.submit(_ask(1, deadline=now + 0.05))
        result = await partial.result()
        with pytest.raises(DeadlineExceeded):
            await hopeless.result()
    assert result.finish_reason is FinishReason.DEADLINE
    assert 0 < result.num_generated < 400


async def test_interactive_requests_overtake_waiting_batch_ones() -> None:
    async with started(FakeRunner(step_seconds=0.005), max_running=1) as (engine, ledger):
        await engine.submit(_ask(0, LONG, sampling=SamplingParams(max_tokens=20)))
        batch = await engine.submit(_ask(1, priority=Priority.BATCH))
        chat = await engine.submit(_ask(2))
        await asyncio.gather(batch.result(), chat.result())
    assert ledger.admissions[1:] == [chat.request.id, batch.request.id]


async def test_draining_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    async with started(FakeRunner(step_seconds=0.005)) as (engine, _):
        stream = await engine.submit(_ask(0, "a b c d e f"))
        stopping = asyncio.create_task(engine.stop(5))
        await asyncio.sleep(0.01)
        with pytest.raises(Draining):
            await engine.submit(_ask(1))
        assert (await stream.result()).answer == "a b c d e f"
        await stopping
        assert engine.status().state is EngineState.STOPPED


async def test_past_the_grace_the_rest_is_cancelled_not_forgotten() -> None:
    async with started(FakeRunner(step_seconds=0.01), max_running=1) as (engine, _):
        streams = [
            await engine.submit(_ask(i, LONG, sampling=SamplingParams(max_tokens=400)))
            for i in range(3)
        ]
        await engine.stop(0.05)
        for stream in streams:
            with pytest.raises(RequestCancelled):
                await stream.result()


async def test_a_fault_fails_its_batch_with_errors_and_the_engine_goes_on() -> None:
    runner = FakeRunner(faults={"bad": RuntimeError("boom")})
    async with started(runner) as (engine, _):
        bad = await engine.submit(_ask(0, "bad"))
        with pytest.raises(InternalError):
            await bad.result()
        assert (await (await engine.submit(_ask(1, "fine"))).result()).answer == "fine"
        assert engine.status().state is EngineState.READY


async def test_a_lost_device_is_declared_dead_and_everyone_is_told() -> None:
    ledger = Ledger()
    runner = BrokenRunner(step_seconds=0.01)
    engine = Engine(lambda: runner, max_running=1, max_queue=8, observer=ledger)
    await engine.start()
    streams = [await engine.submit(_ask(idx, LONG)) for idx in range(3)]
    runner.lost = True
    for stream in streams:
        with pytest.raises((InternalError, EngineDead)):
            await stream.result()
    assert engine.status().state is EngineState.DEAD
    with pytest.raises(EngineDead):
        await engine.submit(_ask(9))
    await engine.stop(0)
    assert len(ledger.ends) == 3


async def test_what_is_left_when_the_thread_ends_is_told_and_counted() -> None:
    runner, ledger = FakeRunner(), Ledger()
    limits = SchedulerLimits(max_running=1, max_queue=4, kv_bytes=runner.kv_bytes_limit())
    driver = Driver(
        runner,
        Scheduler(limits),
        observer=ledger,
        changed=threading.Condition(),
        post=lambda call, *arguments: call(*arguments),
    )
    request = _ask(0)
    stream = QueuedStream(request, driver.cancel)
    driver.add(EngineRequest(prepared=runner.prepare(request), deliver=stream.deliver))
    driver.abandon()
    with pytest.raises(EngineDead):
        await stream.result()
    assert [type(end) for end in ledger.ends[request.id]] == [EngineDead]


class TornLedger(Ledger):
    """An observer that breaks while a request ends."""

    def finished(self, request: ChatRequest, result: ChatResult) -> None:
        raise RuntimeError("ledger torn")


class TornRunner(FakeRunner):
    """Gives memory back only until it is torn."""

    torn = False

    def release(self, request: EngineRequest) -> None:
        super().release(request)
        if self.torn:
            raise RuntimeError("release torn")


async def test_a_request_is_answered_even_if_its_bookkeeping_fails() -> None:
    engine = Engine(FakeRunner, max_running=2, max_queue=8, observer=TornLedger())
    await engine.start()
    for idx in range(2):
        stream = await engine.submit(_ask(idx, "still here"))
        assert (await asyncio.wait_for(stream.result(), 2)).answer == "still here"
    await engine.stop(1)


async def test_if_even_recovery_fails_everyone_is_told_and_the_engine_is_dead() -> None:
    runner = TornRunner(step_seconds=0.01)
    engine = Engine(lambda: runner, max_running=1, max_queue=8, observer=Ledger())
    await engine.start()
    streams = [await engine.submit(_ask(idx, "a b c")) for idx in range(3)]
    runner.torn = True
    for stream in streams:
        with pytest.raises((RuntimeError, AllrounderError)):
            await asyncio.wait_for(stream.result(), 2)
    assert engine.status().state is EngineState.DEAD
    await engine.stop(0)


async def test_before_the_model_is_loaded_requests_are_told_so() -> None:
    engine = Engine(FakeRunner, max_running=1, max_queue=1, observer=Ledger())
    with pytest.raises(Loading):
        await engine.submit(_ask(0))
    assert engine.status().state is EngineState.LOADING


async def test_a_model_that_does_not_load_is_an_error_at_start() -> None:
    def fail() -> FakeRunner:
        raise OSError("no such folder")

    engine = Engine(fail, max_running=1, max_queue=1, observer=Ledger())
    with pytest.raises(OSError, match="no such folder"):
        await engine.start()
    assert engine.status().state is EngineState.DEAD


async def test_a_typed_error_of_one_request_leaves_its_neighbours_alone() -> None:
    runner = FakeRunner(step_seconds=0.002, faults={"odd": InternalError("odd one")})
    async with started(runner) as (engine, _):
        good = [await engine.submit(replace(_ask(i, "a b c"), id=f"g{i}")) for i in range(3)]
        odd = await engine.submit(_ask(9, "odd"))
        with pytest.raises(InternalError):
            await odd.result()
        for stream in good:
            assert (await stream.result()).answer == "a b c"
