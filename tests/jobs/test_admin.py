"""What operators do with batch jobs, by the commands that they type."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from typer.testing import CliRunner

from allrounder_service.cli.main import cli
from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.admin import Admin
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.records import new_batch_id
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.runtime import files_folder
from allrounder_service.jobs.sweeper import Sweeper
from allrounder_service.settings import Settings
from tests.jobs.serving import ENDPOINT, Executor, input_of, serving

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def serve(redis_url, tmp_path):
    return lambda **options: serving(redis_url, tmp_path, **options)


@pytest.fixture
def type_in(redis_url, tmp_path):
    """A command on the queue and the folder of `serve`. The server itself has no such settings,
    for it would start a worker of its own.
    """
    env = {"ALLROUNDER_REDIS_URL": redis_url, "ALLROUNDER_DATA_DIR": str(tmp_path)}

    async def invoke(*words, answer=None):
        # In a thread, for a command has an event loop of its own.
        runner = CliRunner(env=env)
        return await asyncio.to_thread(runner.invoke, cli, ["jobs", *words], input=answer)

    return invoke


async def failed_batch(served):
    """-> a batch of which one line was answered and one was not."""
    data = "\n".join([input_of(1), input_of(1, status=400).replace("line-0", "bad")])
    made = await served.create(data)
    async with Executor(served.queue, served.store).running():
        return await served.until(made["id"])


async def test_what_failed_is_run_again_as_a_new_batch(serve, type_in):
    async with serve() as served:
        done = await failed_batch(served)
        result = await type_in("retry", done["id"])
        assert result.exit_code == 0, result.output
        async with Executor(served.queue, served.store).running():
            again = await served.until(result.output.strip())
        assert again["request_counts"] == {"total": 1, "completed": 0, "failed": 1}
        assert again["metadata"] == {"retry_of": done["id"]}


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("input_file_id", "the input of this batch was deleted"),
        ("error_file_id", "the error file of this batch was deleted"),
    ],
)
async def test_a_retry_whose_bytes_are_gone_says_so(serve, type_in, lost, said):
    async with serve() as served:
        done = await failed_batch(served)
        sha256 = await served.queue.client.hget(key("file", done[lost]), "sha256")
        served.store.blob_path(sha256).unlink()
        result = await type_in("retry", done["id"])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit), "a traceback is no answer"
        assert said in result.output


async def test_a_purged_batch_frees_its_idempotency_key(serve, type_in):
    async with serve() as served:
        data, headers = input_of(1), {"Idempotency-Key": "once"}
        file = await served.upload(data)
        order = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}

        async def post(**changes):
            response = await served.http.post("/v1/batches", json=order | changes, headers=headers)
            assert response.status_code == 200, response.text
            return response.json()["id"]

        made = [await post()]
        assert await post() == made[0]
        for changes in ({}, {"metadata": {"another": "order"}}):
            async with Executor(served.queue, served.store).running():
                await served.until(made[-1])
            assert (await type_in("purge", made[-1])).exit_code == 0
            async with asyncio.timeout(30):
                while await served.queue.batch(made[-1]) is not None:
                    await asyncio.sleep(0.05)
            made.append(await post(**changes))
        assert len(set(made)) == 3


async def test_a_batch_that_is_forgotten_while_it_is_purged_leaves_nothing(
    serve, type_in, monkeypatch
):
    async with serve() as served:
        done = await failed_batch(served)
        await served.settled()
        admin = Admin(served.jobs)
        record = await admin.batch(done["id"])

        async def read_before(id):
            await served.queue.client.delete(key("batch", id))
            return record

        monkeypatch.setattr(admin, "batch", read_before)
        await admin.purge(done["id"])
        assert not await served.queue.client.exists(key("batch", done["id"]))
        result = await type_in("list")
        assert (result.exit_code, result.output) == (0, "")


def age(path):
    then = time.time() - 2 * keys.GRACE_SECONDS
    os.utime(path, (then, then))


async def put_old(served, data):
    """Bytes of a batch that the queue is about to forget -> their path."""
    sha256 = await served.queue.client.hget(
        key("file", (await served.upload(data))["id"]), "sha256"
    )
    age(served.store.blob_path(sha256))
    return served.store.blob_path(sha256)


async def test_a_volume_is_swept_again_once_it_is_adopted_after_a_loss_of_redis(
    serve, redis_url, type_in, caplog
):
    async with connect(redis_url) as client:
        # The service's own sweeper waits for this turn, so that only the test sweeps.
        await client.set(key("sweeping"), "1")
    async with serve() as served:
        client, sweeper = served.queue.client, Sweeper(served.queue.client, served.store)
        lost = await put_old(served, input_of(3))
        await sweeper.sweep()
        assert lost.exists()
        batch = new_batch_id()
        served.store.put_result(batch, b"{}")
        age(served.store.results / batch)
        async with client.pipeline(transaction=True) as losing:
            await losing.flushall().set(key("sweeping"), "1").execute()
        since = await put_old(served, input_of(2))
        assert await sweeper.sweep() == 0
        assert "allrounder jobs adopt-volume" in caplog.text
        assert "remove the folder" not in caplog.text

        refused = await type_in("adopt-volume", answer="n\n")
        assert refused.exit_code == 1
        size = lost.stat().st_size
        assert f"files without a record: 1 ({size} bytes)" in refused.output
        assert "with their responses: 1" in refused.output
        assert str(served.store.blobs.parent) in refused.output
        assert await sweeper.sweep() == 0

        adopted = await type_in("adopt-volume", "--yes")
        assert adopted.exit_code == 0, adopted.output
        assert await sweeper.sweep() == 2
        assert (lost.exists(), since.exists()) == (False, True)
        assert list(served.store.results.iterdir()) == []


async def test_adopting_a_folder_that_cannot_be_used_is_an_error_in_words(tmp_path, type_in):
    store = BlobStore(files_folder(Settings(data_dir=tmp_path)))
    store.prepare()
    (store.blobs.parent / "volume").mkdir()
    result = await type_in("adopt-volume", "--yes")
    assert result.exit_code == 1
    assert "cannot store files" in result.output
