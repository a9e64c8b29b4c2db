"""Leases of lines: claims, heartbeats, fencing tokens, retries, and the grace period."""

from __future__ import annotations

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.records import JobState
from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts.contract import check_refused, check_repeat, contract, numbers
from tests.jobs.scenes import Scene, refs, result


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
async def every_transition_of_a_line_is_idempotent(scene: Scene) -> None:
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
async def a_worker_is_fenced_off_as_soon_as_its_line_is_reclaimed(scene: Scene) -> None:
    await scene.submit("b")
    old = await scene.claim_one("frozen")
    await scene.crash("frozen")
    record = await scene.queue.job(old.job)
    assert record is not None
    assert record.fence > old.fence


@contract
async def a_heartbeat_renews_leases_and_names_lost_ones(scene: Scene) -> None:
    queue = scene.queue
    await scene.submit("b", 3)
    mine, theirs, _ = await scene.claim("w", 3)
    await scene.lapse("w")
    assert (await queue.heartbeat("w", {mine.job: mine.fence})).lost == frozenset()
    assert await queue.reap() == 2
    answer = await queue.heartbeat("w", {mine.job: mine.fence, theirs.job: theirs.fence})
    assert answer.lost == {theirs.job}


@contract
async def a_worker_that_resumes_does_not_regain_its_line(scene: Scene) -> None:
    await scene.submit("b")
    old = await scene.claim_one("frozen")
    await scene.crash("frozen")
    fresh = await scene.claim_one("w")
    await scene.lapse("w")
    assert (await scene.queue.heartbeat("frozen", {old.job: old.fence})).lost == {old.job}
    assert await scene.queue.reap() == 1, "the old worker's heartbeat renewed the new one's lease"
    assert not await scene.end(fresh)


@contract
async def lines_of_a_crashed_worker_are_redelivered(scene: Scene) -> None:
    await scene.submit("b", 5)
    held = await scene.claim("dead", 5)
    assert await scene.crash("dead") == 5
    again = await scene.claim("w", 5)
    assert [each.job for each in again] == [each.job for each in held]
    assert [each.attempts for each in again] == [2] * 5
    assert (await scene.queue.census()).stats["redelivered"] == 5


@contract
async def retries_are_claimed_before_new_lines(scene: Scene) -> None:
    await scene.submit("b", 6)
    await scene.claim("dead", 2)
    await scene.crash("dead")
    assert numbers(await scene.claim("w", 4)) == [0, 1, 2, 3]


@contract
async def a_released_line_is_retried_without_a_crash(scene: Scene) -> None:
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
async def after_an_outage_no_line_is_reclaimed_for_one_lease(scene: Scene) -> None:
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
async def an_idle_worker_writes_nothing(scene: Scene) -> None:
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
async def one_reap_is_bounded_and_repeated_ones_reach_every_line(scene: Scene) -> None:
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
async def an_expired_lease_is_found_behind_thousands_that_are_not(scene: Scene) -> None:
    scene.limit(window=5_000)
    await scene.submit("b", 4_200)
    assert len(await scene.claim("busy", 4_199)) == 4_199
    await scene.claim_one("dead")
    assert await scene.crash("dead") == 1
