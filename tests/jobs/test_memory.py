"""What a line of a batch costs in memory, and that the default limits fit the shipped server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from allrounder_service.jobs.embedded.binary import CONFIG
from allrounder_service.jobs.queue import QueueLimits
from allrounder_service.jobs.records import JobState, LineRef, LineResult, new_batch_id
from allrounder_service.jobs.runtime import jobs_options
from allrounder_service.settings import Settings
from tests.jobs.scenes import SHA, Scene, connected
from tests.jobs.servers import BINARIES, running_server

pytestmark = pytest.mark.timeout(120)

NUM_LINES = 2_000
# What the description of `max_queued_lines` and the shipped configuration say.
PACKED_BYTES, UNPACKED_BYTES = 700, 1_500
# As large as these fields get: a file of 200 MB, a tenant and a worker with long names.
TENANT, WORKER = "tenant-" + "0" * 24, "host-name-of-a-worker-12345-1790000000000000000"
RESULT = LineResult(status=200, sha256=SHA, prompt_tokens=12_345, completion_tokens=1_234)
# By Redis' own default hashes with a longer value are not packed.
DEFAULT_PACKED_VALUE = "64"


async def bytes_of_a_line(url: str) -> float:
    """Of memory, once it has ended; its batch has not."""
    async with connected(url) as client:
        scene = Scene(client)
        await scene.prepare()
        await scene.submit(new_batch_id(), 1, "another")
        await scene.end(await scene.claim_one(WORKER))
        before = (await client.info("memory"))["used_memory"]
        batch = new_batch_id()
        await scene.create(batch, NUM_LINES, TENANT)
        lease = await scene.lease_batch(batch)
        assert await scene.queue.begin(lease)
        for first in range(0, NUM_LINES, 500):
            lines = range(first, first + 500)
            refs = [LineRef(sha256=SHA, offset=100_000_000 + n, length=100_000) for n in lines]
            assert await scene.queue.submit(lease, first, refs)
        while claimed := await scene.claim(WORKER, 64):
            for each in claimed:
                assert await scene.queue.done(each.job, each.fence, JobState.DONE, RESULT)
        assert await scene.counts(batch) == (0, NUM_LINES, 0)
        return ((await client.info("memory"))["used_memory"] - before) / NUM_LINES


def shipped_bytes() -> int:
    """maxmemory of the configuration."""
    found = re.search(r"^maxmemory (\d+)mb$", CONFIG.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 2**20


@pytest.mark.parametrize("binary", BINARIES)
async def test_as_many_lines_as_are_admitted_take_less_than_half_of_the_shipped_memory(
    binary: str, tmp_path: Path
) -> None:
    with running_server(binary, tmp_path, appendfsync="no") as server:
        cost = await bytes_of_a_line(server.url)
    print(f"{binary}: {cost:.0f} bytes for a line that has ended")
    assert 0.8 * PACKED_BYTES < cost < PACKED_BYTES
    assert Settings().max_queued_lines * cost < shipped_bytes() / 2


@pytest.mark.parametrize("binary", BINARIES)
async def test_they_also_fit_a_server_of_that_size_that_does_not_pack_hashes(
    binary: str, tmp_path: Path
) -> None:
    packed = {"hash_max_listpack_value": DEFAULT_PACKED_VALUE}
    with running_server(binary, tmp_path, appendfsync="no", **packed) as server:
        cost = await bytes_of_a_line(server.url)
    print(f"{binary}: {cost:.0f} bytes for a line that has ended, not packed")
    assert cost < UNPACKED_BYTES
    assert Settings().max_queued_lines * cost < shipped_bytes()


def test_the_embedded_server_has_the_shipped_memory_and_the_queue_the_settings_limits() -> None:
    assert Settings().embedded_redis_bytes == shipped_bytes()
    assert jobs_options(Settings()).queue == QueueLimits()
