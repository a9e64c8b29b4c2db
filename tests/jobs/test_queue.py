"""The queue keeps its contracts on every supported server, also when its memory is full."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from allrounder_service.jobs.queue import CHUNK_LINES, load_sources
from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts import CONTRACTS
from tests.jobs.scenes import Scene, connected, refs
from tests.jobs.servers import BINARIES, RunningServer, running_server

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=BINARIES)
def quick_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """Nothing here survives a crash, so nothing need wait for the disk."""
    folder = tmp_path_factory.mktemp(request.param)
    with running_server(request.param, folder, appendfsync="no") as server:
        yield server


@pytest.fixture
async def scene(quick_server: RunningServer) -> AsyncIterator[Scene]:
    quick_server.flush()
    async with connected(quick_server.url) as client:
        scene = Scene(client)
        await scene.prepare()
        yield scene
        assert await scene.violations() == []


@pytest.mark.parametrize("name", CONTRACTS)
async def test_contract(name: str, scene: Scene) -> None:
    await CONTRACTS[name](scene)


@pytest.mark.parametrize("binary", BINARIES)
async def test_with_redis_full_nothing_is_half_submitted_and_what_runs_can_end(
    binary: str, tmp_path: Path
) -> None:
    with running_server(binary, tmp_path, appendfsync="no") as server:
        async with connected(server.url) as client:
            scene = Scene(client)
            await scene.prepare()
            await scene.submit("old", 8)
            done, released, lost, _ = await scene.claim("w", 4)
            await scene.create("new", 500)
            lease = await scene.lease_batch("new")
            assert await scene.queue.begin(lease)
            await client.config_set("maxmemory", 1)
            before = await scene.dump()
            with pytest.raises(OutOfMemoryError):
                await scene.queue.submit(lease, 0, refs(0, 500))
            with pytest.raises(OutOfMemoryError):
                await scene.create("third", 5)
            assert await scene.dump() == before
            assert (await scene.queue.census()).lines == 508
            assert await scene.queue.heartbeat("w", {lost.job: lost.fence})
            assert await scene.end(done)
            assert await scene.queue.release(released.job, released.fence)
            assert await scene.crash("w") == 2
            assert len(await scene.claim("w", 9)) == 7
            await scene.queue.cancel("old", "t")
            old = await scene.queue.lease_batch()
            assert old is not None
            assert old.batch == "old"
            await scene.withdraw_all(old)
            await scene.crash("w")
            assert await scene.finish(old)
            assert await scene.queue.sweep(old, 0) == 1
            assert await scene.queue.hand_back(old)
            await client.config_set("maxmemory", "256mb")
            assert await scene.queue.submit(lease, 0, refs(0, 500))
            await scene.queue.hand_back(lease)
            assert await scene.run_dry() == 500
            assert await scene.violations() == []


async def test_fifty_thousand_lines_are_submitted_in_seconds(
    shared_server: Callable[[str], RunningServer],
) -> None:
    """As shipped: every script waits for the disk."""
    server = shared_server(BINARIES[0])
    server.flush()
    async with connected(server.url) as client:
        scene = Scene(client)
        await scene.prepare()
        started = time.perf_counter()
        await scene.submit("b", 50_000)
        submitted = time.perf_counter()
        await scene.queue.cancel("b", "t")
        await scene.withdraw_all(await scene.lease_batch("b"))
        withdrawn = time.perf_counter()
        print(f"50,000 lines submitted in {submitted - started:.1f} s,", end=" ")
        print(f"withdrawn in {withdrawn - submitted:.1f} s, {CHUNK_LINES} to a script")
        assert await scene.counts("b") == (0, 0, 50_000)
        slow = await client.slowlog_get(128)
        assert max((row["duration"] for row in slow), default=0) < 2_000_000
        assert withdrawn - started < 60


def test_every_script_says_what_redis_must_know_of_it() -> None:
    for name, source in load_sources().items():
        assert source.startswith("#!lua"), name
    need_memory = {"add_file", "create", "submit"}
    assert {
        name
        for name, source in load_sources().items()
        if "allow-oom" not in source.partition("\n")[0] and name != "census"
    } == need_memory


async def test_every_key_of_the_queue_lies_in_one_slot_of_a_cluster(scene: Scene) -> None:
    await scene.submit("b", 70, idempotency_key="k")
    await scene.claim("w")
    async for name in scene.client.scan_iter(count=1000):
        assert name.startswith(key())
        assert name.index("{v}") == name.index("{")
