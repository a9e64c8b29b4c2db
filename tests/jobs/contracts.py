"""What the queue promises, one function for each promise; broken queues must break one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.queue import Admission, BatchLease
from allrounder_service.jobs.records import BatchStatus, JobState, LineError, TokenUsage
from allrounder_service.jobs.redis_keys import key
from tests.jobs.scenes import Scene, new_batch, refs, result

Contract = Callable[[Scene], Awaitable[None]]
CONTRACTS: dict[str, Contract] = {}


def contract(check: Contract) -> Contract:
    CONTRACTS[check.__name__] = check
    return check


async def observe(scene: Scene, call: Callable[[], Awaitable[object]]) -> tuple[object, object]:
    return await call(), await scene.dump()


async def check_repeat(scene: Scene, call: Callable[[], Awaitable[object]]) -> None:
    """The second call changes nothing and says that all is well."""
    first, after = await observe(scene, call)
    again, later = await observe(scene, call)
    assert later == after
    assert bool(again) == bool(first)
    assert first


async def check_refused(scene: Scene, call: Callable[[], Awaitable[object]]) -> None:
    before = await scene.dump()
    answer, after = await observe(scene, call)
    assert after == before
    assert answer in (False, -1, 0)


@contract
async def work_older_than_the_consumer_groups_is_found(scene: Scene) -> None:
    async def submit_before_groups() -> None:
        for lane in keys.LANES:
            await scene.client.delete(key("lane", lane))
        await scene.submit("b", 3)

    await submit_before_groups()
    await scene.prepare()
    assert len(await scene.claim("w", 5)) == 3


@contract
async def a_batch_runs_from_the_door_to_its_files(scene: Scene) -> None:
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


def numbers(claimed) -> list[int]:
    return [int(each.job.partition("/")[2]) for each in claimed]


@contract
async def the_lane_keeps_every_line_of_a_window_in_order(scene: Scene) -> None:
    await scene.submit("b", 200)
    claimed = await scene.claim("w", 200)
    assert numbers(claimed) == list(range(keys.WINDOW))


@contract
async def every_transition_of_a_batch_may_be_repeated(scene: Scene) -> None:
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
async def every_transition_of_a_line_may_be_repeated(scene: Scene) -> None:
    queue = scene.queue
    await scene.submit("b", 6)
    one, two, *others = await scene.claim("w", 5)
    await check_repeat(scene, lambda: scene.end(one))
    await check_repeat(scene, lambda: scene.end(two, "bad", JobState.FAILED))
    await check_repeat(scene, lambda: queue.release(others[0].job, others[0].fence))
    leases = {each.job: each.fence for each in others[1:]}
    await check_repeat(scene, lambda: queue.heartbeat("w", leases))
    assert await scene.crash("w") == 2
    before = await scene.dump()
    assert await queue.reap() == 0
    await queue.retire("w")
    await queue.retire("w")
    assert await scene.dump() == before


@contract
async def calling_off_may_be_repeated(scene: Scene) -> None:
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
async def a_refused_batch_fails_once(scene: Scene) -> None:
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
async def a_steward_with_a_wrong_fence_changes_nothing(scene: Scene) -> None:
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
async def a_stale_steward_cannot_withdraw_sweep_finalize_or_forget(scene: Scene) -> None:
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
async def a_stale_execution_publishes_nothing(scene: Scene) -> None:
    await scene.submit("b")
    old = await scene.claim_one("frozen")
    assert await scene.crash("frozen") == 1
    await check_refused(scene, lambda: scene.end(old, "stale"))
    fresh = await scene.claim_one("w")
    assert fresh.fence > old.fence
    await check_refused(scene, lambda: scene.end(old, "stale"))
    await check_refused(scene, lambda: scene.queue.release(old.job, old.fence))
    assert await scene.end(fresh, "fresh")
    await check_refused(scene, lambda: scene.end(old, "stale"))
    record = await scene.queue.job(fresh.job)
    assert record is not None
    assert record.result == result("fresh")
    assert (await scene.queue.census()).stats["stale_results"] == 3


@contract
async def a_worker_is_fenced_off_as_soon_as_its_line_is_taken_back(scene: Scene) -> None:
    await scene.submit("b")
    old = await scene.claim_one("frozen")
    await scene.crash("frozen")
    record = await scene.queue.job(old.job)
    assert record is not None
    assert record.fence > old.fence


@contract
async def a_beat_renews_a_lease_and_names_what_was_lost(scene: Scene) -> None:
    queue = scene.queue
    await scene.submit("b", 3)
    mine, theirs, _ = await scene.claim("w", 3)
    await scene.lapse("w")
    assert (await queue.heartbeat("w", {mine.job: mine.fence})).lost == frozenset()
    assert await queue.reap() == 2
    answer = await queue.heartbeat("w", {mine.job: mine.fence, theirs.job: theirs.fence})
    assert answer.lost == {theirs.job}


@contract
async def a_frozen_worker_that_wakes_does_not_take_its_line_back(scene: Scene) -> None:
    await scene.submit("b")
    old = await scene.claim_one("frozen")
    await scene.crash("frozen")
    fresh = await scene.claim_one("w")
    await scene.lapse("w")
    assert (await scene.queue.heartbeat("frozen", {old.job: old.fence})).lost == {old.job}
    assert await scene.queue.reap() == 1, "the old worker's beat kept the new one's lease alive"
    assert not await scene.end(fresh)


@contract
async def what_a_dead_worker_held_is_done_by_another(scene: Scene) -> None:
    await scene.submit("b", 5)
    held = await scene.claim("dead", 5)
    assert await scene.crash("dead") == 5
    again = await scene.claim("w", 5)
    assert [each.job for each in again] == [each.job for each in held]
    assert [each.attempts for each in again] == [2] * 5
    assert (await scene.queue.census()).stats["redelivered"] == 5


@contract
async def ended_lines_never_change(scene: Scene) -> None:
    queue = scene.queue
    lease = await scene.submit("b", 4)
    done, failed, stopped, _ = claimed = await scene.claim("w", 4)
    assert await scene.end(done)
    assert await scene.end(failed, "bad", JobState.FAILED)
    await queue.cancel("b", "t")
    await queue.withdraw(lease, 0)
    assert await scene.end(stopped, state=JobState.CANCELLED)
    await scene.crash("w")
    states = [await scene.state(each.job) for each in claimed]
    assert states == ["done", "failed", "cancelled", "cancelled"]
    before = await scene.dump()
    for each in claimed:
        assert not await scene.end(each, "another")
        assert not await scene.end(each, "another", JobState.FAILED)
        assert not await queue.release(each.job, each.fence)
        assert (await queue.heartbeat("w", {each.job: each.fence})).lost == {each.job}
    await scene.crash("w")
    lease = await scene.lease_batch("b")
    await queue.withdraw(lease, 0)
    assert not await queue.submit(lease, 0, refs(0, 4))
    assert await scene.claim("w", 4) == []
    after = await scene.dump()
    for store in (before, after):
        del store[key("batch", "b")]["fence"]
    assert after == before


@contract
async def a_tenant_waits_behind_one_window_of_another(scene: Scene) -> None:
    scene.limit(window=4)
    await scene.submit("big", 100, "a")
    await scene.submit("small", 6, "b")
    order: list[str] = []
    while len(order) < 40:
        claimed = await scene.claim_one()
        order.append(claimed.tenant)
        assert await scene.end(claimed)
    assert order.index("b") == 4
    first = order.index("b")
    assert order[first : first + 16].count("b") == 6
    assert numbers(await scene.claim("w", 100)) == list(range(34, 38))


@contract
async def a_window_is_filled_again_by_every_way_out(scene: Scene) -> None:
    scene.limit(window=2)
    lease = await scene.submit("b", 12)

    async def lane() -> int:
        return int(await scene.client.xlen(key("lane", "batch")))

    one, two = await scene.claim("w", 2)
    assert await lane() == 4
    assert await scene.end(one)
    assert await scene.end(two, "bad", JobState.FAILED)
    assert await lane() == 2
    three = await scene.claim_one()
    assert await scene.queue.release(three.job, three.fence)
    assert [each.job for each in await scene.claim("w", 5)] == ["b/2", "b/3", "b/4"]
    await scene.submit("c", 2)
    assert await scene.client.hgetall(key("window")) == {"t": "2"}
    await scene.queue.cancel("b", "t")
    await scene.withdraw_all(lease)
    assert await scene.crash("w") == 3
    assert await scene.client.hgetall(key("window")) == {"t": "2"}
    assert [each.job for each in await scene.claim("w", 5)] == ["c/0", "c/1"]
    assert await scene.client.hgetall(key("window")) == {}


@contract
async def what_runs_takes_no_room_from_what_waits(scene: Scene) -> None:
    """However many workers there are, one tenant alone can fill them all."""
    scene.limit(window=4)
    await scene.submit("b", 40)
    for worker in range(8):
        assert len(await scene.claim(f"w{worker}", 4, running=0)) == 4
    assert await scene.client.hgetall(key("window")) == {"t": "4"}


@contract
async def what_fails_beside_others_twice_runs_alone(scene: Scene) -> None:
    await scene.submit("b", 2)
    for lane in ("retry", "suspect"):
        failed, released = await scene.claim("w", 2)
        assert not failed.is_alone
        assert await scene.queue.release(failed.job, failed.fence, failed=True)
        assert await scene.queue.release(released.job, released.fence)
        records = [await scene.queue.job(each.job) for each in (failed, released)]
        assert [each and each.lane for each in records] == [lane, "retry"]
        assert [each and each.crashes for each in records] == [0, 0]
    alone = await scene.claim("w", 2)
    assert [(each.job, each.is_alone) for each in alone] == [(failed.job, True)]


@contract
async def after_an_outage_nobody_is_dead_for_a_lease(scene: Scene) -> None:
    await scene.submit("b", 2)
    held = await scene.claim("w", 2)
    await scene.lapse("w")
    assert await scene.queue.reap() == 2

    held = await scene.claim("w", 2)
    await scene.client.set(key("reaped"), 1)
    assert await scene.crash("w") == 0
    assert 0 < await scene.client.pttl(key("grace")) <= keys.LEASE_MS
    beat = await scene.queue.heartbeat("w", {each.job: each.fence for each in held})
    assert not beat.lost
    await scene.client.delete(key("grace"))
    assert await scene.queue.reap() == 0
    assert await scene.crash("w") == 2


@contract
async def a_worker_that_only_looks_writes_nothing(scene: Scene) -> None:
    """Of a server that syncs every write, an idle worker must not make use."""

    async def changes() -> int:
        info = await scene.client.info("persistence")
        return int(info["rdb_changes_since_last_save"])

    await scene.claim("w")
    before = await changes()
    for _ in range(5):
        assert await scene.claim("w") == []
    assert await changes() == before
    await scene.client.zadd(key("workers"), {"w": 1})
    await scene.claim("w")
    assert (await scene.queue.census()).workers == 1


@contract
async def what_was_begun_goes_before_what_is_new(scene: Scene) -> None:
    await scene.submit("b", 6)
    await scene.claim("dead", 2)
    await scene.crash("dead")
    assert numbers(await scene.claim("w", 4)) == [0, 1, 2, 3]


@contract
async def a_second_crash_makes_a_line_suspect_and_the_second_alone_ends_it(scene: Scene) -> None:
    await scene.submit("b", 1)
    lanes = []
    for _ in range(4):
        claimed = await scene.claim_one("dead")
        record = await scene.queue.job(claimed.job)
        assert record is not None
        lanes.append(record.lane)
        assert await scene.crash("dead") == 1
    assert lanes == ["batch", "retry", "suspect", "suspect"]
    record = await scene.queue.job("b/0")
    assert record is not None
    assert (record.state, record.crashes, record.solo_crashes) == ("failed", 4, 2)
    assert record.result is not None
    assert record.result.code == "worker_lost"
    assert await scene.counts("b") == (0, 0, 1)
    census = await scene.queue.census()
    assert (census.dead, census.stats["dead"], census.stats["lease_lost"]) == (1, 1, 4)


async def make_suspects(scene: Scene, count: int) -> None:
    for _ in range(2):
        assert len(await scene.claim("dead", count)) == count
        await scene.crash("dead")


@contract
async def a_suspect_runs_alone_while_others_go_on(scene: Scene) -> None:
    await scene.submit("b", 2)
    await make_suspects(scene, 2)
    await scene.submit("c", 20)
    busy = await scene.claim("other", 3)
    assert [each.job[0] for each in busy] == ["b"], "a suspect has company"
    assert await scene.claim("other", 3, running=1) == []
    assert [each.job[0] for each in await scene.claim("w", 3)] == ["c"] * 3
    assert await scene.end(busy[0])
    second = await scene.claim("other", 3)
    assert [each.job[0] for each in second] == ["b"]
    assert await scene.end(second[0])
    assert [each.job[0] for each in await scene.claim("other", 3)] == ["c"] * 3


@contract
async def one_worker_empties_its_batch_before_it_runs_a_suspect(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    await scene.submit("c", 20)
    assert await scene.claim("w", 3, running=5) == []
    assert len(await scene.claim("other", 2, running=1)) == 2
    assert [each.job for each in await scene.claim("w", 3)] == ["b/0"]


@contract
async def a_suspect_has_no_company_even_when_its_turn_has_lapsed(scene: Scene) -> None:
    await scene.submit("b", 2)
    await make_suspects(scene, 2)
    await scene.submit("c", 20)
    await scene.claim_one("w")
    await scene.client.delete(key("solo"))
    assert len(await scene.claim("other", 3)) == 1
    assert await scene.claim("w", 3, running=1) == []


@contract
async def the_turn_at_suspects_ends_with_its_worker(scene: Scene) -> None:
    scene.limit(lease_ms=20_000)
    await scene.submit("b", 2)
    await make_suspects(scene, 2)
    await scene.claim_one("w")
    left = await scene.client.pttl(key("solo"))
    assert 0 < left <= scene.queue.limits.solo_ms
    await scene.client.pexpire(key("solo"), 1_000)
    await scene.queue.heartbeat("other", {})
    assert await scene.client.pttl(key("solo")) <= 1_000
    await scene.queue.heartbeat("w", {})
    assert await scene.client.pttl(key("solo")) > 1_000
    await scene.client.pexpire(key("solo"), 1_000)
    await scene.claim("w", 1, running=3)
    assert await scene.client.pttl(key("solo")) <= 1_000, "a batch that hangs keeps the turn"
    await scene.client.pexpire(key("solo"), 0)
    assert [each.job[0] for each in await scene.claim("other", 3)] == ["b"]


@contract
async def a_worker_that_retires_hands_its_turn_on(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    assert await scene.claim("w", 3, running=2) == []
    await scene.queue.retire("other")
    assert await scene.claim("other", 3) == []
    await scene.queue.retire("w")
    assert len(await scene.claim("other", 3)) == 1


@contract
async def a_worker_that_wants_nothing_gets_nothing_and_waits_for_nothing(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    assert await scene.claim("w", 3, running=2) == []
    assert await scene.claim("w", 0, running=2) == []
    assert await scene.claim("w", 0) == []
    assert len(await scene.claim("other", 3)) == 1


@contract
async def a_turn_that_nobody_needs_any_more_ends(scene: Scene) -> None:
    lease = await scene.submit("b")
    await make_suspects(scene, 1)
    await scene.submit("c", 3)
    assert await scene.claim("w", 3, running=2) == []
    await scene.queue.cancel("b", "t")
    await scene.withdraw_all(await scene.lease_batch("b"))
    assert lease.batch == "b"
    assert len(await scene.claim("w", 3, running=2)) == 3
    assert await scene.client.get(key("solo")) is None


@contract
async def poison_takes_no_innocent_with_it(scene: Scene) -> None:
    await scene.submit("b", 30)
    poison, num_crashes, worker = {"b/3", "b/17"}, 0, 0
    while True:
        claimed = await scene.claim(f"w{worker}", 8)
        if not claimed:
            break
        if poison & {each.job for each in claimed}:
            num_crashes += 1
            await scene.crash(f"w{worker}")
            worker += 1
            continue
        for each in claimed:
            assert await scene.end(each)
    states = {f"b/{line}": await scene.state(f"b/{line}") for line in range(30)}
    assert {job for job, state in states.items() if state == "failed"} == poison
    assert await scene.counts("b") == (0, 28, 2)
    assert (await scene.queue.census()).dead == 2
    assert num_crashes <= 8


@contract
async def a_released_line_goes_on_without_a_crash(scene: Scene) -> None:
    await scene.submit("b", 2)
    for _ in range(5):
        claimed = await scene.claim_one()
        assert claimed.job == "b/0"
        assert await scene.queue.release(claimed.job, claimed.fence)
    record = await scene.queue.job("b/0")
    assert record is not None
    assert (record.state, record.lane, record.crashes) == ("queued", "retry", 0)
    assert not await scene.end(claimed)
    again = await scene.claim_one("other")
    assert again.fence > claimed.fence
    await check_refused(scene, lambda: scene.end(claimed))


@contract
async def a_released_suspect_stays_suspect(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    claimed = await scene.claim_one()
    assert await scene.queue.release(claimed.job, claimed.fence)
    record = await scene.queue.job("b/0")
    assert record is not None
    assert (record.lane, record.crashes, record.solo_crashes) == ("suspect", 2, 0)


@contract
async def lines_called_off_end_wherever_they_are(scene: Scene) -> None:
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
async def a_line_that_finishes_after_all_counts_as_done(scene: Scene) -> None:
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
async def a_batch_that_was_never_begun_ends_when_called_off(scene: Scene) -> None:
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
async def a_steward_is_found_for_every_batch_that_needs_one(scene: Scene) -> None:
    queue = scene.queue
    await scene.create("b", 2)
    lease: BatchLease | None = await queue.lease_batch()
    assert lease == BatchLease(batch="b", fence=1)
    assert await queue.lease_batch() is None, "two stewards at once"
    await scene.client.zadd(key(keys.DUE), {"b": 0})
    lease = await queue.lease_batch()
    assert lease == BatchLease(batch="b", fence=2), "the steward died"
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
async def a_cancelled_batch_finds_its_steward_at_once_and_then_again(scene: Scene) -> None:
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
    assert lease is not None, "a line still runs: look again"
    await queue.hand_back(lease, poll_seconds=60)
    assert await queue.lease_batch() is None
    await scene.end(claimed, state=JobState.CANCELLED)
    assert await queue.lease_batch() is not None


@contract
async def admission_ends_at_the_limits_and_begins_again_below(scene: Scene) -> None:
    scene.limit(max_lines=11, max_tenant_lines=6)
    await scene.submit("a", 6, "a")
    answer = await scene.queue.create(new_batch("a2", 1, "a"))
    assert answer == (Admission.TENANT_FULL, "6")
    claimed = await scene.claim_one()
    await scene.end(claimed)
    await scene.create("a2", 1, "a")
    answer = await scene.queue.create(new_batch("a3", 1, "a"))
    assert answer == (Admission.TENANT_FULL, "6")
    await scene.queue.cancel("a2", "a")
    await scene.create("a3", 1, "a")
    await scene.submit("b", 3, "b")
    assert await scene.queue.create(new_batch("c", 1, "c")) == (Admission.FULL, "11")
    assert await scene.queue.batch("c") is None


@contract
async def lines_that_ended_take_room_until_their_batch_is_cleaned_up(scene: Scene) -> None:
    scene.limit(max_lines=30)
    for batch, lines in (("b", 5), ("refused", 5), ("waits", 20)):
        await scene.create(batch, lines)
    refused = await scene.lease_batch("refused")
    await scene.queue.begin(refused, [LineError(code="c", message="m")])
    lease = await scene.lease_batch("b")
    await scene.queue.begin(lease)
    await scene.queue.submit(lease, 0, refs(0, 5))
    for claimed in await scene.claim("w", 5):
        await scene.end(claimed)
    await scene.finish(lease)
    assert (await scene.queue.census()).lines == 20
    assert await scene.queue.create(new_batch("c")) == (Admission.FULL, "30")
    for done in (lease, refused):
        for _ in range(2):
            assert await scene.queue.sweep(done, 0) == 1
    await scene.create("c", 10)
    assert await scene.queue.create(new_batch("d")) == (Admission.FULL, "30")


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
async def an_idempotency_key_is_free_again_when_its_batch_is_forgotten(scene: Scene) -> None:
    queue = scene.queue
    for id, digest in (("b", "d"), ("again", "d"), ("other", "e")):
        await scene.submit(id, idempotency_key="k", digest=digest)
        await scene.end(await scene.claim_one())
        lease = await scene.lease_batch(id)
        await scene.finish(lease)
        await queue.sweep(lease, 0)
        assert await queue.purge(id)
        assert await queue.find_by_idempotency_key("t", "k") == (id, digest)
        answer = await queue.create(new_batch("later", idempotency_key="k", digest="x"))
        assert answer == (Admission.CONFLICT, id)
        assert await queue.forget(lease)


@contract
async def the_census_of_a_server_that_was_emptied_counts_nothing(scene: Scene) -> None:
    await scene.client.flushall()
    census = await scene.queue.census()
    assert {(each.waiting, each.running) for each in census.lanes.values()} == {(0, 0)}
    # A steward may submit lines before anybody makes the groups.
    await scene.submit("b", 2)
    census = await scene.queue.census()
    assert census.waiting == {"suspect": 0, "retry": 0, "batch": 2}
    await scene.prepare()


@contract
async def one_idempotency_key_makes_one_batch(scene: Scene) -> None:
    queue = scene.queue
    await queue.create(new_batch("b", 2, idempotency_key="k", digest="d"))
    for id in ("b", "other"):
        answer = await queue.create(new_batch(id, 2, idempotency_key="k", digest="d"))
        assert answer == (Admission.SAME, "b")
    answer = await queue.create(new_batch("other", 2, idempotency_key="k", digest="e"))
    assert answer == (Admission.CONFLICT, "b")
    await scene.create("theirs", 2, "u", idempotency_key="k", digest="e")
    await scene.create("without", 2)
    await scene.create("without-too", 2)
    assert (await queue.census()).lines == 8
    left = await scene.client.ttl(key("idem", "t", "k"))
    assert keys.IDEMPOTENCY_SECONDS - 5 <= left <= keys.IDEMPOTENCY_SECONDS
    assert await queue.create(new_batch("theirs", 2, "u")) == (Admission.SAME, "theirs")


@contract
async def the_census_counts_what_there_is(scene: Scene) -> None:
    scene.limit(window=4)
    await scene.submit("b", 10)
    await scene.create("waits", 5)
    await scene.claim("dead", 2)
    await scene.crash("dead")
    await scene.claim("w", 1)
    await scene.queue.heartbeat("v", {})
    census = await scene.queue.census()
    lanes = {name: (each.waiting, each.running) for name, each in census.lanes.items()}
    assert lanes == {"suspect": (0, 0), "retry": (1, 1), "batch": (4, 0)}
    assert (census.lines, census.backlog) == (15, 9)
    assert (census.workers, census.dead) == (3, 0)
    assert census.stats == {"lease_lost": 2, "redelivered": 1}
    assert 0 <= census.oldest_seconds < 60
    await scene.client.hset(key("job", "b/2"), "created_ms", 1)
    assert (await scene.queue.census()).oldest_seconds > 1e9
    await scene.queue.retire("v")
    assert (await scene.queue.census()).workers == 2


@contract
async def a_consumer_is_removed_only_when_it_holds_nothing(scene: Scene) -> None:
    await scene.submit("b", 2)
    await scene.claim("busy")
    idle = await scene.claim_one("idle")
    await scene.end(idle)
    name = key("lane", "batch")
    args = (scene.queue.limits.lease_ms, keys.MAX_SOLO_CRASHES, keys.WINDOW, -1)
    await scene.queue._run("reap", *args)
    left = {row["name"] for row in await scene.client.xinfo_consumers(name, keys.GROUP)}
    assert "busy" in left
    assert "idle" not in left
    assert await scene.crash("busy") == 1


@contract
async def scripts_that_redis_forgot_are_sent_again(scene: Scene) -> None:
    await scene.create("b")
    await scene.client.script_flush()
    lease = await scene.lease_batch("b")
    await scene.client.script_flush()
    assert await scene.queue.begin(lease)


@contract
async def every_lane_is_served_whatever_one_reap_can_take(scene: Scene) -> None:
    scene.limit(window=700)
    await scene.submit("b", 700)
    assert len(await scene.claim("dead", 650)) == 650
    await scene.lapse("dead")
    taken = []
    while count := await scene.queue.reap():
        taken.append(count)
    assert sum(taken) == 650
    assert max(taken) <= 400


@contract
async def a_lapsed_lease_is_found_behind_thousands_that_are_not(scene: Scene) -> None:
    scene.limit(window=5_000)
    await scene.submit("b", 4_200)
    assert len(await scene.claim("busy", 4_199)) == 4_199
    await scene.claim_one("dead")
    assert await scene.crash("dead") == 1
