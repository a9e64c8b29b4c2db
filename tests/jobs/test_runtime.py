"""The batch jobs of one process recover from faults, and end at a shutdown."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.execution import LineResponse
from allrounder_service.jobs.facade import BatchOrder, Jobs, JobsOptions
from allrounder_service.jobs.queue import Queue, QueueLimits
from allrounder_service.jobs.records import BatchStatus, JobState
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.runtime import JobsRuntime, files_folder
from allrounder_service.metrics.definitions import build_instruments
from allrounder_service.metrics.engine_metrics import EngineMetrics
from allrounder_service.settings import Settings
from tests.jobs.fleet import load_batch, num_ended, questions
from tests.jobs.serving import ENDPOINT, input_of

pytestmark = pytest.mark.timeout(120)

LEASE_SECONDS = 0.6
PATIENCE_SECONDS = 60


@pytest.fixture
def settings(redis_url, tmp_path):
    return Settings(
        redis_url=redis_url, data_dir=tmp_path / "data", batch_lease_seconds=LEASE_SECONDS
    )


async def answer(url, body, *, tenant, id, job):
    return LineResponse(status=200, body={"echo": dict(body)})


@asynccontextmanager
async def running(settings):
    """A runtime with a real engine; lines are answered without it."""
    observer = EngineMetrics(build_instruments())
    engine = Engine(FakeRunner, max_running=4, max_queue=4, observer=observer)
    runtime = JobsRuntime(settings, engine)
    async with AsyncExitStack() as stack:
        await engine.start()
        stack.push_async_callback(engine.stop, 1)
        await runtime.start(answer)
        stack.push_async_callback(runtime.stop)
        yield runtime


async def order_batch(jobs, num_lines=3):
    upload = jobs.upload()
    upload.write(input_of(num_lines).encode())
    file = await jobs.add_file("t", upload.commit(), filename="in", seconds=None)
    order = BatchOrder(
        endpoint=ENDPOINT,
        input_file_id=file.id,
        completion_window="24h",
        window_seconds=86_400,
    )
    return (await jobs.create_batch("t", order)).id


async def until_status(jobs, id, status):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await jobs.batch("t", id)).status is not status:
            await asyncio.sleep(0.05)


async def test_a_data_folder_that_cannot_be_used_at_start_is_used_once_it_can(settings, caplog):
    in_the_way = files_folder(settings)
    in_the_way.parent.mkdir()
    in_the_way.write_text("not a folder")
    async with running(settings) as runtime:
        # Long enough for three attempts.
        await asyncio.sleep(1)
        told = [each for each in caplog.records if each.levelno == logging.CRITICAL]
        assert len(told) == 1
        assert "tried again" in told[0].message
        in_the_way.unlink()
        id = await order_batch(runtime.jobs())
        await until_status(runtime.jobs(), id, BatchStatus.COMPLETED)


async def test_a_data_folder_that_is_never_usable_does_not_keep_the_process_alive(settings):
    in_the_way = files_folder(settings)
    in_the_way.parent.mkdir()
    in_the_way.write_text("not a folder")
    async with asyncio.timeout(10):
        async with running(settings):
            await asyncio.sleep(0.5)


async def test_a_worker_that_fails_is_followed_by_another_that_does_its_lines(settings):
    """A damaged record fails every worker that claims it; in the end only it is given up."""
    limits = QueueLimits(lease_ms=int(LEASE_SECONDS * 1000))
    client = connect(settings.redis_url.get_secret_value())
    queue, asked = Queue(client, limits), questions(4)
    await queue.prepare()
    batch = await load_batch(queue, BlobStore(files_folder(settings)), asked)
    damaged, intact = f"{batch}/2", await client.hget(key("job", f"{batch}/2"), "ref")
    await client.hset(key("job", damaged), "ref", "{}")
    async with running(settings):
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await num_ended(queue, [batch]) < len(asked):
                await asyncio.sleep(0.05)
    await client.hset(key("job", damaged), "ref", intact)
    found = [await queue.job(f"{batch}/{n}") for n in range(len(asked))]
    ends = [(each.state, each.result.code) for each in found if each and each.result]
    good, lost = (JobState.DONE, None), (JobState.FAILED, "worker_lost")
    assert ends == [good, good, lost, good]
    await client.aclose()


async def test_no_worker_follows_one_that_failed_once_the_process_is_about_to_end(settings, caplog):
    client = connect(settings.redis_url.get_secret_value())
    queue = Queue(client, QueueLimits())
    await queue.prepare()
    batch = await load_batch(queue, BlobStore(files_folder(settings)), questions(1))
    await client.hset(key("job", f"{batch}/0"), "ref", "{}")
    async with running(settings) as runtime:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not any(each.levelno == logging.CRITICAL for each in caplog.records):
                await asyncio.sleep(0.005)
        await runtime.release()
        await asyncio.sleep(0.5)
        assert (await queue.census()).workers == 0
    await client.aclose()


async def test_controllers_without_workers_recover_from_an_emptied_server(any_redis_url, tmp_path):
    """`serve --no-batch-worker`: no worker creates the lanes again."""
    client = connect(any_redis_url)
    limits = QueueLimits(lease_ms=300)
    jobs = Jobs(client, BlobStore(tmp_path), JobsOptions(poll_seconds=0.05, queue=limits))
    await jobs.start()
    try:
        await until_status(jobs, await order_batch(jobs), BatchStatus.IN_PROGRESS)
        await client.flushall()
        assert (await jobs.queue.census()).lines == 0, "a scrape counts an emptied server"
        # Its chores, which need the lanes, come due meanwhile.
        await asyncio.sleep(1)
        id = await order_batch(jobs)
        await until_status(jobs, id, BatchStatus.IN_PROGRESS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await jobs.queue.census()).lanes["batch"].waiting < 3:
                await asyncio.sleep(0.05)
    finally:
        await jobs.stop()
        await client.aclose()
