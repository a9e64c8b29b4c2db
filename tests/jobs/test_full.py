"""Redis without memory or disk: new batches are refused, nothing accepted is lost."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from allrounder.errors import QueueUnavailable
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect, queue_errors
from allrounder_service.jobs.invariants import find_violations
from allrounder_service.jobs.queue import Admission, NewBatch, Queue, QueueLimits
from allrounder_service.jobs.records import JobState, new_batch_id
from tests.jobs.fleet import Fleet, check_all, load_batch, num_ended, questions, wait_until_ended
from tests.jobs.servers import BINARIES, RunningServer, running_server

pytestmark = pytest.mark.timeout(300)

LEASE_MS = 2000
MANY = 100_000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each check on both programs in the long form, on one of them in turn in the short."""
    if "small_server" in metafunc.fixturenames:
        turn = int("r8" in metafunc.function.__name__)
        long_form = metafunc.config.getoption("--long")
        programs = BINARIES if long_form else [BINARIES[turn]]
        metafunc.parametrize("small_server", programs, indirect=True)


@pytest.fixture
def small_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServer]:
    with running_server(request.param, tmp_path / "redis", maxmemory="8mb") as server:
        yield server


@pytest.fixture
async def queue(small_server: RunningServer) -> AsyncIterator[Queue]:
    client = connect(small_server.url)
    queue = Queue(client, QueueLimits(lease_ms=LEASE_MS))
    await queue.prepare()
    yield queue
    await client.aclose()


async def test_r7_without_memory_new_batches_are_refused_and_running_lines_end(
    queue, small_server, tmp_path
):
    store, asked = BlobStore(tmp_path / "data"), questions(100)
    batch = await load_batch(queue, store, asked)
    accepted, refusal = await _create_until_refused(queue)
    assert refusal.status == 503
    assert refusal.retry_after_seconds
    with Fleet(small_server.url, store.results.parent, size=1) as fleet:
        await wait_until_ended(queue, [batch], fleet, seconds=60)
    assert await num_ended(queue, [batch]) == len(asked)
    with pytest.raises(QueueUnavailable):
        await _create(queue)
    assert (await queue.census()).lines == len(accepted), "the metrics work when it is full"
    await _give_room(queue)
    assert await _create(queue)
    assert await _all_there(queue, accepted)
    found = {(await queue.job(f"{batch}/{n}")).state for n in range(len(asked))}
    assert found == {JobState.DONE}
    assert await find_violations(queue.client) == []


async def test_r8_without_disk_new_batches_are_refused_and_accepted_ones_survive(
    queue, small_server, tmp_path
):
    store, asked = BlobStore(tmp_path / "data"), questions(60)
    batch = await load_batch(queue, store, asked)
    written = sum(each.stat().st_size for each in small_server.folder.rglob("*.aof"))
    # A limit on the size of a file fails the write as a full disk does, and needs no mount.
    limit = written + 400_000
    resource.prlimit(small_server.pid, resource.RLIMIT_FSIZE, (limit, limit))
    accepted, refusal = await _create_until_refused(queue)
    assert accepted, "the limit came too early for this check"
    assert refusal.status == 503
    assert small_server.process.wait(30) != 0, "with `always` a server that cannot write must end"
    small_server.process = None
    small_server.start()
    assert await _all_there(queue, accepted)
    assert await find_violations(queue.client) == []
    with Fleet(small_server.url, store.results.parent, size=1) as fleet:
        await wait_until_ended(queue, [batch], fleet, seconds=60)
    # Those others were never begun, and so their lines are what is left.
    left = await queue.census()
    assert left.lines == len(accepted) + left_over(accepted, left.lines)
    for each in accepted:
        assert await queue.cancel(each, "t")
    assert (await check_all(queue, store, batch, asked))[JobState.DONE] == len(asked)


def left_over(accepted: list[str], lines: int) -> int:
    """The batch whose acceptance was not acknowledged may be there or not."""
    return lines - len(accepted) if lines - len(accepted) in (0, 1) else -1


async def _create(queue: Queue) -> str:
    batch = new_batch_id()
    with queue_errors():
        how, _ = await queue.create(
            NewBatch(
                id=batch,
                tenant="t",
                endpoint="/v1/chat",
                input_file_id="file-of-a-test",
                input_sha256="0" * 64,
                lines=1,
                completion_window="24h",
                window_seconds=86_400,
                metadata={"note": "x" * 20_000},
            )
        )
    assert how is Admission.OK
    return batch


async def _create_until_refused(queue: Queue) -> tuple[list[str], QueueUnavailable]:
    accepted: list[str] = []
    for _ in range(MANY):
        try:
            accepted.append(await _create(queue))
        except QueueUnavailable as err:
            return accepted, err
    raise AssertionError("the server was never full")


async def _give_room(queue: Queue) -> None:
    await queue.client.config_set("maxmemory", "64mb")


async def _all_there(queue: Queue, accepted: list[str]) -> bool:
    return all([await queue.batch(each) for each in accepted])
