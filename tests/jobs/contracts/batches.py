"""The life of a batch and the leases of its controllers."""

from __future__ import annotations

from functools import partial

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.queue import Admission, BatchLease
from allrounder_service.jobs.records import BatchStatus, JobState, LineError, TokenUsage
from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts.contract import check_refused, check_repeat, contract, numbers
from tests.jobs.scenes import Scene, new_batch, refs


@contract
async def a_batch_runs_from_admission_to_its_files(scene: Scene) -> None:
    lease = await scene.submit("b", 70)
    assert await scene.queue.hand_back(lease)
    for lines in (30, 40):
        claimed = await scene.claim("w", lines)
        assert len(claimed) == lines
        for each in claimed:
            assert await scene.end(each)
    assert await scene.counts("b") == (0, 70, 0)
    assert await scene.status("b") is BatchStatus.FINALIZING
    lease = await scene.lease_batch("b")
    assert await scene.finish(lease)
    record = await scene.queue.batch("b")
    assert record is not None
    assert record.status is BatchStatus.COMPLETED
    assert record.output_file_id == "file-of-b"
    assert record.usage == TokenUsage(prompt_tokens=3, completion_tokens=2)
    assert await scene.queue.sweep(lease, 0) == 1
    await scene.set_field("b", forget_ms=1)
    assert await scene.queue.forget(lease)
    assert await scene.queue.batch("b") is None


@contract
async def every_transition_of_a_batch_is_idempotent(scene: Scene) -> None:
    queue = scene.queue
    new = new_batch("b", 3, idempotency_key="k", digest="d")
    await queue.create(new)
    before = await scene.dump()
    assert await queue.create(new) == (Admission.SAME, "b")
    assert await scene.dump() == before
    lease = await scene.lease_batch("b")
    await check_repeat(scene, lambda: queue.begin(lease))
    await check_repeat(scene, lambda: queue.submit(lease, 0, refs(0, 2)))
    await check_repeat(scene, lambda: queue.submit(lease, 2, refs(2, 3)))
    await check_repeat(scene, lambda: queue.renew_batch(lease))
    for each in await scene.claim("w", 3):
        await check_repeat(scene, partial(scene.end, each))
    await check_repeat(scene, lambda: scene.finish(lease))
    await check_repeat(scene, lambda: queue.sweep(lease, 0))
    await check_repeat(scene, lambda: queue.hand_back(lease))
    await scene.set_field("b", forget_ms=1)
    assert await queue.forget(lease)
    before = await scene.dump()
    await queue.forget(lease)
    assert await scene.dump() == before


@contract
async def an_invalid_batch_fails_once(scene: Scene) -> None:
    await scene.create("b", 5)
    lease = await scene.lease_batch("b")
    errors = [LineError(code="invalid_json", message="not JSON", line=2)]
    await check_repeat(scene, lambda: scene.queue.begin(lease, errors))
    record = await scene.queue.batch("b")
    assert record is not None
    assert (record.status, record.errors) == (BatchStatus.FAILED, tuple(errors))
    assert not await scene.queue.begin(lease)
    assert (await scene.queue.census()).lines == 0


@contract
async def a_batch_ends_only_when_its_last_line_has(scene: Scene) -> None:
    lease = await scene.submit("b", 2)
    one, two = await scene.claim("w", 2)
    await scene.end(one)
    await check_refused(scene, lambda: scene.finish(lease))
    await check_refused(scene, lambda: scene.queue.sweep(lease, 0))
    await scene.end(two)
    assert await scene.finish(lease)


@contract
async def an_empty_batch_ends_too(scene: Scene) -> None:
    await scene.create("b", 0)
    await scene.run_dry()
    assert await scene.status("b") is BatchStatus.COMPLETED


@contract
async def lines_come_in_order_once_and_no_more_than_were_admitted(scene: Scene) -> None:
    await scene.create("b", 10)
    lease = await scene.lease_batch("b")
    await check_refused(scene, lambda: scene.queue.submit(lease, 0, refs(0, 1)))
    await scene.queue.begin(lease)
    assert await scene.queue.submit(lease, 0, refs(0, 5))
    await check_refused(scene, lambda: scene.queue.submit(lease, 6, refs(6, 8)))
    await check_refused(scene, lambda: scene.queue.submit(lease, 5, refs(5, 11)))
    first = (await scene.claim("w", 2))[0]
    await scene.end(first)
    assert await scene.queue.submit(lease, 0, refs(0, 7)), "an overlap with what is there"
    assert await scene.queue.submit(lease, 7, refs(7, 10))
    assert numbers(await scene.claim("w", 20)) == list(range(2, 10))


@contract
async def only_a_batch_that_has_ended_is_purged(scene: Scene) -> None:
    queue = scene.queue
    lease = await scene.submit("b")
    await check_refused(scene, lambda: queue.purge("b"))
    await scene.end(await scene.claim_one())
    await check_refused(scene, lambda: queue.purge("b"))
    await scene.finish(lease)
    await queue.sweep(lease, 0)
    await queue.hand_back(lease)
    assert await queue.lease_batch() is None
    await check_repeat(scene, lambda: queue.purge("b"))
    found = await queue.lease_batch()
    assert found is not None
    assert await queue.forget(found)
    await check_refused(scene, lambda: queue.purge("b"))
    assert await queue.batch("b") is None


@contract
async def a_controller_with_a_wrong_fencing_token_changes_nothing(scene: Scene) -> None:
    queue = scene.queue
    await scene.create("new", 3)
    old = await scene.lease_batch("new")
    fresh = await scene.lease_batch("new")
    assert fresh.fence > old.fence
    for wrong in (old, BatchLease(batch="new", fence=fresh.fence + 1)):
        await check_refused(scene, partial(queue.begin, wrong))
        await check_refused(scene, partial(queue.begin, wrong, [LineError(code="c", message="m")]))
    assert await queue.begin(fresh)
    late = await scene.submit("late", 2)
    await scene.set_field("late", expires_ms=1)
    done = await scene.submit("done", 1)
    await scene.end(await scene.claim_one())
    while await scene.claim("w", 10):
        pass
    for lease in (fresh, late, done):
        wrong = BatchLease(batch=lease.batch, fence=lease.fence - 1)
        await check_refused(scene, partial(queue.submit, wrong, 0, refs(0, 1)))
        await check_refused(scene, partial(queue.renew_batch, wrong))
        await check_refused(scene, partial(queue.hand_back, wrong))
        await check_refused(scene, partial(queue.expire, wrong))
        await check_refused(scene, partial(queue.withdraw, wrong, 0))
        await check_refused(scene, partial(queue.finalize, wrong, [], TokenUsage()))
        await check_refused(scene, partial(queue.sweep, wrong, 0))
        await check_refused(scene, partial(queue.forget, wrong))


@contract
async def a_stale_controller_cannot_withdraw_sweep_finalize_or_forget(
    scene: Scene,
) -> None:
    queue = scene.queue
    old = await scene.submit("b", 3)
    await queue.cancel("b", "t")
    lease = await scene.lease_batch("b")
    await check_refused(scene, lambda: queue.withdraw(old, 0))
    await scene.withdraw_all(lease)
    await check_refused(scene, lambda: scene.finish(old))
    assert await scene.finish(lease)
    await check_refused(scene, lambda: queue.sweep(old, 0))
    assert await queue.sweep(lease, 0) == 1
    await scene.set_field("b", forget_ms=1)
    await check_refused(scene, lambda: queue.forget(old))
    assert await queue.forget(lease)


@contract
async def a_batch_is_due_whenever_it_needs_a_controller(scene: Scene) -> None:
    queue = scene.queue
    await scene.create("b", 2)
    lease: BatchLease | None = await queue.lease_batch()
    assert lease == BatchLease(batch="b", fence=1)
    assert await queue.lease_batch() is None, "two controllers at once"
    await scene.client.zadd(key(keys.DUE), {"b": 0})
    lease = await queue.lease_batch()
    assert lease == BatchLease(batch="b", fence=2), "the lease expired"
    assert await queue.hand_back(lease)
    lease = await queue.lease_batch()
    assert lease is not None, "it is still validating"
    await queue.begin(lease)
    await queue.submit(lease, 0, refs(0, 2))
    await queue.hand_back(lease)
    assert await queue.lease_batch() is None, "nothing to do until its lines have ended"
    one, two = await scene.claim("w", 2)
    await scene.end(one)
    assert await queue.lease_batch() is None
    await scene.end(two)
    lease = await queue.lease_batch()
    assert lease is not None, "all its lines have ended"
    await scene.finish(lease)
    await queue.hand_back(lease)
    lease = await queue.lease_batch()
    assert lease is not None, "its jobs are not swept"
    await queue.sweep(lease, 0)
    await queue.hand_back(lease)
    assert await queue.lease_batch() is None
    score = await scene.client.zscore(key(keys.DUE), "b")
    record = await queue.batch("b")
    assert record is not None
    assert score == record.forget_ms


@contract
async def a_cancelled_batch_is_due_at_once_and_polled_until_its_lines_end(scene: Scene) -> None:
    queue = scene.queue
    lease: BatchLease | None = await scene.submit("b", 1)
    assert lease is not None
    await queue.hand_back(lease)
    claimed = await scene.claim_one()
    await queue.cancel("b", "t")
    lease = await queue.lease_batch()
    assert lease is not None
    await scene.withdraw_all(lease)
    await queue.hand_back(lease, poll_seconds=0)
    lease = await queue.lease_batch()
    assert lease is not None, "a line still runs: poll again"
    await queue.hand_back(lease, poll_seconds=60)
    assert await queue.lease_batch() is None
    await scene.end(claimed, state=JobState.CANCELLED)
    assert await queue.lease_batch() is not None
