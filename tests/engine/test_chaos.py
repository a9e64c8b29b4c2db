"""Random arrivals, cancellations, deadlines and faults: everyone is answered exactly once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.core import ChatRequest, ChatResult, Priority, SamplingParams
from allrounder.core.budget import Budget, Counts, FlopsShare
from allrounder.engine.engine import Engine, QueuedStream
from allrounder.engine.fake import KV_BYTES_ROW, FakeRunner
from allrounder.engine.protocols import EngineState
from allrounder.errors import (
    AllrounderError,
    DeadlineExceeded,
    EngineOutOfMemory,
    InternalError,
    QueueFull,
    RequestCancelled,
)
from tests.engine.ledger import Ledger
from tests.tiny import chat_request

TYPED = InternalError("this one fails alone")
FAULTS: dict[str, Exception] = {"typed fault": TYPED, "untyped fault": RuntimeError("a bad step")}
MAY_END_WITH = (RequestCancelled, DeadlineExceeded, InternalError, EngineOutOfMemory)


def _forms() -> list[Budget]:
    return [FlopsShare(share=1.0), Counts(tokens=3), Counts(tokens=9, layers=3)]


def _draw(draw: random.Random, idx: int) -> ChatRequest:
    words = " ".join(["word"] * draw.randint(1, 60))
    question = draw.choice([*FAULTS, "short"]) if draw.random() < 0.15 else words
    deadline = time.monotonic() + draw.uniform(0, 0.1) if draw.random() < 0.2 else None
    return chat_request(
        idx,
        form=draw.choice(_forms()),
        question=question,
        priority=draw.choice(list(Priority)),
        sampling=SamplingParams(max_tokens=draw.randint(1, 80)),
        arrival=time.monotonic(),
        deadline=deadline,
        plan_only=draw.random() < 0.1,
    )


async def _end_of(stream: QueuedStream, draw: random.Random) -> ChatResult | AllrounderError:
    if draw.random() < 0.2:
        await asyncio.sleep(draw.uniform(0, 0.05))
        stream.cancel()
    try:
        text = "".join([chunk.text async for chunk in stream.chunks()])
        result = await stream.result()
    except AllrounderError as err:
        return err
    assert text == result.answer
    return result


async def _storm(seed: int, num_requests: int) -> Counter[str]:
    draw = random.Random(seed)
    runner = FakeRunner(
        step_seconds=0.002,
        faults=FAULTS,
        max_kv_bytes=KV_BYTES_ROW * draw.randint(250, 600),
        max_rows=draw.choice([90, 200, 2**20]),
    )
    ledger = Ledger()
    engine = Engine(
        lambda: runner,
        max_running=draw.randint(1, 8),
        max_queue=draw.randint(1, 20),
        observer=ledger,
        max_step_rows=draw.choice([64, 300]),
    )
    await engine.start()
    refused, waiting = 0, []
    for idx in range(num_requests):
        try:
            stream = await engine.submit(_draw(draw, idx))
        except (QueueFull, DeadlineExceeded):
            refused += 1
        else:
            waiting.append(asyncio.create_task(_end_of(stream, draw)))
        await asyncio.sleep(draw.uniform(0, 0.004))
    ends = await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert engine.status().state is EngineState.READY
    assert engine.status().num_running == engine.status().num_waiting == 0
    await engine.stop(1)
    assert len(ends) + refused == num_requests
    assert refused == len(ledger.rejections)
    assert len(ledger.ends) == len(ends)
    assert all(len(each) == 1 for each in ledger.ends.values())
    assert not runner.running
    assert runner.most_bytes <= runner.max_kv_bytes
    assert all(isinstance(end, (ChatResult, *MAY_END_WITH)) for end in ends)
    kinds = [type(end).__name__ for end in (*ends, *ledger.rejections)]
    return Counter(kinds + ["preempted"] * len(ledger.preemptions))


@pytest.mark.timeout(300)
def test_in_any_storm_each_admitted_request_ends_exactly_once(long_form: bool) -> None:
    seen: Counter[str] = Counter()
    seeds = range(200 if long_form else 12)
    for seed in seeds:
        seen += asyncio.run(_storm(seed, num_requests=40))
    expected = {
        "ChatResult",
        "RequestCancelled",
        "DeadlineExceeded",
        "InternalError",
        "preempted",
    }
    print(f"storms {len(seeds)} from seed 0: {dict(seen)}")
    assert expected <= set(seen), "the storms did not reach every kind of end"


async def test_a_step_that_does_not_fit_is_halved_until_it_does() -> None:
    runner = FakeRunner(max_rows=60)
    engine = Engine(lambda: runner, max_running=8, max_queue=20, observer=Ledger())
    await engine.start()
    streams = [await engine.submit(chat_request(idx, question=f"a b {idx}")) for idx in range(8)]
    for idx, stream in enumerate(streams):
        assert (await asyncio.wait_for(stream.result(), 5)).answer == f"a b {idx}"
    await engine.stop(1)


async def test_only_a_request_that_does_not_fit_even_alone_gets_an_error() -> None:
    runner = FakeRunner(max_rows=60)
    engine = Engine(lambda: runner, max_running=8, max_queue=20, observer=Ledger())
    await engine.start()
    huge = await engine.submit(chat_request(99, question=" ".join(["word"] * 100)))
    small = [await engine.submit(chat_request(idx, question="a b")) for idx in range(4)]
    with pytest.raises(EngineOutOfMemory):
        await asyncio.wait_for(huge.result(), 5)
    for stream in small:
        assert (await asyncio.wait_for(stream.result(), 5)).answer == "a b"
    assert engine.status().state is EngineState.READY
    await engine.stop(1)


@given(st.integers(1, 40))
def test_preempted_requests_answer_as_if_nothing_had_happened(num_words: int) -> None:
    async def run() -> None:
        runner, ledger = FakeRunner(max_kv_bytes=KV_BYTES_ROW * 200), Ledger()
        engine = Engine(lambda: runner, max_running=8, max_queue=20, observer=ledger)
        await engine.start()
        words = " ".join(f"w{idx}" for idx in range(num_words))
        sampling = SamplingParams(max_tokens=100)
        asked = [chat_request(idx, question=words, sampling=sampling) for idx in range(6)]
        streams = [await engine.submit(request) for request in asked]
        for stream in streams:
            assert (await asyncio.wait_for(stream.result(), 5)).answer == words
        await engine.stop(1)
        assert runner.most_bytes <= runner.max_kv_bytes

    asyncio.run(run())
