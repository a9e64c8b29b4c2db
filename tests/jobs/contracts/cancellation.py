"""Cancellation and expiry of a batch."""

from __future__ import annotations

from functools import partial

from allrounder_service.jobs.queue import BatchLease
from allrounder_service.jobs.records import BatchStatus, JobState, LineError
from tests.jobs.contracts.contract import check_refused, check_repeat, contract
from tests.jobs.scenes import Scene, refs


@contract
async def cancelling_and_expiring_are_idempotent(scene: Scene) -> None:
    queue = scene.queue
    lease = await scene.submit("b", 3)
    await scene.claim("w")
    await check_repeat(scene, lambda: queue.cancel("b", "t"))
    await check_repeat(scene, lambda: queue.withdraw(lease, 0))
    late = await scene.submit("c", 3)
    await scene.claim("w")
    await scene.set_field("c", expires_ms=1)
    await check_repeat(scene, lambda: queue.expire(late))
    await check_repeat(scene, lambda: queue.withdraw(late, 0))


@contract
async def lines_of_a_stopped_batch_end_in_every_state(scene: Scene) -> None:
    scene.limit(window=4)
    for ending in ("cancelled", "expired"):
        batch = f"b-{ending}"
        await scene.create(batch, 20)
        lease = await scene.lease_batch(batch)
        await scene.queue.begin(lease)
        await scene.queue.submit(lease, 0, refs(0, 12))
        ended, stops, released, lost = await scene.claim("w", 4)
        await scene.end(ended)
        if ending == "cancelled":
            assert await scene.queue.cancel(batch, "t") is BatchStatus.CANCELLING
        else:
            await scene.set_field(batch, expires_ms=1)
            assert await scene.queue.expire(lease)
            assert await scene.queue.cancel(batch, "t") is BatchStatus.IN_PROGRESS
        lease = await scene.lease_batch(batch)
        assert not await scene.queue.submit(lease, 12, refs(12, 20))
        assert await scene.counts(batch) == (11, 1, 8)
        await scene.withdraw_all(lease)
        assert await scene.counts(batch) == (3, 1, 16)
        assert await scene.violations() == []
        claimed = (stops, released, lost)
        beat = await scene.queue.heartbeat("w", {each.job: each.fence for each in claimed})
        assert beat.stop == {each.job for each in claimed}
        assert await scene.end(stops, state=JobState.CANCELLED)
        assert await scene.queue.release(released.job, released.fence)
        assert await scene.crash("w") == 1
        assert {await scene.state(each.job) for each in claimed} == {ending}
        assert await scene.counts(batch) == (0, 1, 19)
        assert await scene.finish(lease)
        assert await scene.status(batch) == ending
    assert (await scene.queue.census()).lines == 0


@contract
async def a_line_that_finishes_after_the_cancellation_counts_as_done(scene: Scene) -> None:
    lease = await scene.submit("b")
    claimed = await scene.claim_one()
    await scene.queue.cancel("b", "t")
    lease = await scene.lease_batch("b")
    await scene.withdraw_all(lease)
    await check_refused(scene, lambda: scene.finish(lease))
    assert await scene.end(claimed)
    assert await scene.counts("b") == (0, 1, 0)
    assert await scene.finish(lease)
    assert await scene.status("b") is BatchStatus.CANCELLED


async def bring_to(scene: Scene, status: str) -> BatchLease:
    """A batch of three lines in this status, one of them submitted if that is possible."""
    await scene.create("b", 3)
    lease = await scene.lease_batch("b")
    if status == "validating":
        return lease
    if status == "failed":
        await scene.queue.begin(lease, [LineError(code="c", message="m")])
        return lease
    await scene.queue.begin(lease)
    if status == "in_progress":
        await scene.queue.submit(lease, 0, refs(0, 1))
        return lease
    await scene.queue.submit(lease, 0, refs(0, 3))
    if status in ("cancelling", "cancelled"):
        await scene.queue.cancel("b", "t")
    if status == "expired":
        await scene.set_field("b", expires_ms=1)
        await scene.queue.expire(lease)
        await scene.set_field("b", expires_ms=2**52)
    if status in ("cancelled", "expired"):
        await scene.withdraw_all(lease)
    if status in ("finalizing", "completed"):
        for each in await scene.claim("w", 3):
            await scene.end(each)
    if status in ("cancelled", "expired", "completed"):
        await scene.finish(lease)
    return lease


@contract
async def cancelling_works_before_the_end_and_changes_nothing_after(scene: Scene) -> None:
    for status in BatchStatus:
        await scene.client.flushall()
        await scene.prepare()
        await bring_to(scene, status)
        assert await scene.status("b") is status
        assert await scene.queue.cancel("b", "stranger") is None
        before = await scene.dump()
        answer = await scene.queue.cancel("b", "t")
        if status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            assert answer is BatchStatus.CANCELLING
        else:
            assert answer is status
            assert await scene.dump() == before
        assert await scene.violations() == []
    assert await scene.queue.cancel("unknown", "t") is None


@contract
async def expiring_works_before_the_end_and_changes_nothing_after(scene: Scene) -> None:
    for status in BatchStatus:
        await scene.client.flushall()
        await scene.prepare()
        lease = await bring_to(scene, status)
        await check_refused(scene, partial(scene.queue.expire, lease))
        await scene.set_field("b", expires_ms=1)
        before = await scene.dump()
        answer = await scene.queue.expire(lease)
        if status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            assert answer
            record = await scene.queue.batch("b")
            assert record is not None
            assert record.ending == "expired"
        else:
            assert await scene.dump() == before
        assert await scene.violations() == []


@contract
async def a_batch_that_was_never_started_ends_when_stopped(scene: Scene) -> None:
    await scene.create("c", 4)
    assert await scene.queue.cancel("c", "t") is BatchStatus.CANCELLING
    lease = await scene.lease_batch("c")
    assert not await scene.queue.begin(lease)
    assert await scene.finish(lease)
    assert await scene.status("c") is BatchStatus.CANCELLED
    await scene.create("e", 4)
    lease = await scene.lease_batch("e")
    await scene.set_field("e", expires_ms=1)
    assert await scene.queue.expire(lease)
    assert await scene.finish(lease)
    assert await scene.status("e") is BatchStatus.EXPIRED
    assert await scene.counts("e") == (0, 0, 4)
