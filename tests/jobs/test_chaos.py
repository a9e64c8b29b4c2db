"""Crashes of workers and of Redis: nothing is lost, nothing is published twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random

import pytest

from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import REPLY_SECONDS, connect
from allrounder_service.jobs.queue import Queue, QueueLimits
from allrounder_service.jobs.records import JobState
from tests.jobs.fleet import Fleet, check_all, load_batch, num_ended, questions, wait_until_ended
from tests.jobs.servers import BINARIES, RunningServer, running_server
from tests.jobs.wire import Wire

pytestmark = pytest.mark.timeout(600)

SEED = 20261121
LEASE_MS = 1000
# A worker may be in the middle of its lines when the network is back.
LONGEST_LINE_SECONDS = 2.5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each check on both programs in the long form, on one of them in turn in the short."""
    if "own_server" in metafunc.fixturenames:
        turn = int(metafunc.function.__name__.split("_")[1].removeprefix("r")) % len(BINARIES)
        long_form = metafunc.config.getoption("--long")
        programs = BINARIES if long_form else [BINARIES[turn]]
        metafunc.parametrize("own_server", programs, indirect=True)


@pytest.fixture
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(request.param, tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def queue(own_server: RunningServer) -> AsyncIterator[Queue]:
    client = connect(own_server.url)
    queue = Queue(client, QueueLimits(lease_ms=LEASE_MS))
    await queue.prepare()
    yield queue
    await client.aclose()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture
def rng() -> Random:
    return Random(SEED)


def _tell(check: str, **figures: object) -> None:
    """The summary line of a check; `pytest -rA` or `-s` shows it."""
    print(check, f"seed={SEED}", *(f"{name}={value}" for name, value in figures.items()))


async def test_r1_workers_killed_mid_batch_lose_nothing(queue, own_server, store, rng, long_form):
    count, kills = (1000, 20) if long_form else (200, 4)
    asked = questions(count)
    batch = await load_batch(queue, store, asked)
    began = time.monotonic()
    with Fleet(own_server.url, store.results.parent) as fleet:
        for kill in range(kills):
            await _wait_for(queue, batch, count * kill // (kills + 1) + 1, fleet)
            fleet.kill_one(rng)
        await wait_until_ended(queue, [batch], fleet, seconds=300)
    found = await check_all(queue, store, batch, asked)
    stats = (await queue.census()).stats
    _tell("R-1", lines=count, kills=kills, **found, **stats, s=round(time.monotonic() - began, 1))
    assert found == {JobState.DONE: count}
    assert stats["lease_lost"] > 0, "no kill hit a running line: the run proved nothing"


async def test_r2_a_killed_server_loses_nothing(queue, own_server, store, rng, long_form):
    count, kills = (1000, 5) if long_form else (150, 2)
    asked = questions(count)
    batch = await load_batch(queue, store, asked)
    with Fleet(own_server.url, store.results.parent) as fleet:
        for kill in range(kills):
            await _wait_for(queue, batch, count * (kill + 1) // (kills + 2), fleet)
            own_server.kill()
            await asyncio.sleep(rng.uniform(0, 1.5 * LEASE_MS / 1000))
            own_server.start()
        await wait_until_ended(queue, [batch], fleet, seconds=300)
        assert fleet.num_died == 0, "a worker must wait for Redis, not die of its absence"
    found = await check_all(queue, store, batch, asked)
    _tell("R-2", lines=count, kills=kills, **found, **(await queue.census()).stats)
    assert found == {JobState.DONE: count}


async def test_r3_a_frozen_worker_that_wakes_is_refused(queue, own_server, store, rng, long_form):
    """A result races with the heartbeat that reports its lost lease: that reply is delayed."""
    count, freezes = 1000 if long_form else 400, range(10)
    options = ["--steps", "30", "--news-ms", "400"]
    asked = questions(count)
    batch = await load_batch(queue, store, asked)
    with Fleet(own_server.url, store.results.parent, options=options) as fleet:
        for freeze in freezes:
            await _wait_for(queue, batch, count * freeze // (len(freezes) + 2) + 1, fleet)
            frozen = rng.choice(fleet.members)
            await asyncio.sleep(rng.uniform(0, 0.3))
            fleet.freeze(frozen)
            await asyncio.sleep(2.5 * LEASE_MS / 1000)
            fleet.thaw(frozen)
            await asyncio.sleep(0.5)
            if not long_form and (await queue.census()).stats.get("stale_results"):
                break
        await wait_until_ended(queue, [batch], fleet, seconds=300)
        await asyncio.sleep(0.5)
    found = await check_all(queue, store, batch, asked)
    stats = (await queue.census()).stats
    _tell("R-3", lines=count, freezes=freeze + 1, **found, **stats)
    assert found == {JobState.DONE: count}
    assert stats.get("stale_results", 0) > 0, "no stale result came: the run proved nothing"


async def test_r4_poison_ends_alone_and_takes_no_innocent_line_along(
    queue, own_server, store, long_form
):
    count, poison = (600, (50, 250, 450)) if long_form else (120, (30,))
    asked = questions(count, poison)
    batch = await load_batch(queue, store, asked)
    with Fleet(own_server.url, store.results.parent) as fleet:
        await wait_until_ended(queue, [batch], fleet, seconds=300)
        died = fleet.num_died
    found = await check_all(queue, store, batch, asked)
    census = await queue.census()
    _tell("R-4", lines=count, poison=len(poison), died=died, **found, **census.stats)
    assert found == {JobState.DONE: count - len(poison), JobState.FAILED: len(poison)}
    assert census.dead == len(poison)
    assert died <= 4 * len(poison)


async def test_r6_a_network_that_fails_loses_nothing(queue, own_server, store, long_form):
    cuts, holes, away = (10, 3, 10.0) if long_form else (2, 1, 1.5)
    count = 2000 if long_form else 400
    asked = questions(count)
    batch = await load_batch(queue, store, asked)
    slow = ["--step-ms", "250" if long_form else "60"]
    returns = []
    async with Wire(own_server.socket) as wire:
        with Fleet(wire.url, store.results.parent, options=slow) as fleet:
            await _wait_for(queue, batch, 1, fleet)
            for _ in range(cuts):
                await wire.cut()
                await asyncio.sleep(away)
                returns.append(await _seconds_to_return(queue, wire, batch))
            for _ in range(holes):
                wire.swallow()
                await asyncio.sleep(REPLY_SECONDS + away)
                returns.append(await _seconds_to_return(queue, wire, batch))
            await wait_until_ended(queue, [batch], fleet, seconds=400)
            assert fleet.num_died == 0
    found = await check_all(queue, store, batch, asked)
    stats = (await queue.census()).stats
    _tell("R-6", lines=count, cuts=cuts, holes=holes, slowest_return=max(returns), **stats)
    assert found == {JobState.DONE: count}
    assert max(returns) < 2 + LONGEST_LINE_SECONDS


async def _seconds_to_return(queue: Queue, wire: Wire, batch: str) -> float:
    """From the mended network to the first line that is claimed or ends."""
    before = await _attempts(queue, batch)
    await wire.mend()
    began = time.monotonic()
    while await _attempts(queue, batch) == before:
        await asyncio.sleep(0.02)
    return round(time.monotonic() - began, 2)


async def _attempts(queue: Queue, batch: str) -> tuple[int, int]:
    record = await queue.batch(batch)
    assert record is not None
    assert record.remaining, "the batch ended too early for this check"
    census = await queue.census()
    return record.remaining, census.lanes["batch"].running


async def _wait_for(queue: Queue, batch: str, ended: int, fleet: Fleet) -> None:
    while await num_ended(queue, [batch]) < ended:
        fleet.mend()
        await asyncio.sleep(0.02)
