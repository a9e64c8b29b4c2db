"""Suspect lines run alone; one that crashes its worker alone twice is a dead letter."""

from __future__ import annotations

from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts.contract import contract
from tests.jobs.scenes import Scene


@contract
async def a_line_that_fails_beside_others_twice_runs_alone(scene: Scene) -> None:
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
async def a_second_crash_makes_a_line_suspect_and_two_alone_a_dead_letter(
    scene: Scene,
) -> None:
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
    assert [each.job[0] for each in busy] == ["b"], "another line runs beside a suspect"
    assert await scene.claim("other", 3, running=1) == []
    assert [each.job[0] for each in await scene.claim("w", 3)] == ["c"] * 3
    assert await scene.end(busy[0])
    second = await scene.claim("other", 3)
    assert [each.job[0] for each in second] == ["b"]
    assert await scene.end(second[0])
    assert [each.job[0] for each in await scene.claim("other", 3)] == ["c"] * 3


@contract
async def one_worker_drains_before_it_runs_a_suspect(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    await scene.submit("c", 20)
    assert await scene.claim("w", 3, running=5) == []
    assert len(await scene.claim("other", 2, running=1)) == 2
    assert [each.job for each in await scene.claim("w", 3)] == ["b/0"]


@contract
async def a_suspect_runs_alone_even_after_the_solo_lease_has_expired(scene: Scene) -> None:
    await scene.submit("b", 2)
    await make_suspects(scene, 2)
    await scene.submit("c", 20)
    await scene.claim_one("w")
    await scene.client.delete(key("solo"))
    assert len(await scene.claim("other", 3)) == 1
    assert await scene.claim("w", 3, running=1) == []


@contract
async def the_solo_lease_expires_with_its_worker(scene: Scene) -> None:
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
    assert await scene.client.pttl(key("solo")) <= 1_000, "only heartbeats renew the solo lease"
    await scene.client.pexpire(key("solo"), 0)
    assert [each.job[0] for each in await scene.claim("other", 3)] == ["b"]


@contract
async def a_retiring_worker_releases_the_solo_lease(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    assert await scene.claim("w", 3, running=2) == []
    await scene.queue.retire("other")
    assert await scene.claim("other", 3) == []
    await scene.queue.retire("w")
    assert len(await scene.claim("other", 3)) == 1


@contract
async def a_worker_without_free_slots_claims_nothing_and_takes_no_solo_lease(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    assert await scene.claim("w", 3, running=2) == []
    assert await scene.claim("w", 0, running=2) == []
    assert await scene.claim("w", 0) == []
    assert len(await scene.claim("other", 3)) == 1


@contract
async def the_solo_lease_ends_when_no_suspect_is_left(scene: Scene) -> None:
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
async def poison_lines_fail_no_other_line(scene: Scene) -> None:
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
async def a_released_suspect_stays_suspect(scene: Scene) -> None:
    await scene.submit("b")
    await make_suspects(scene, 1)
    claimed = await scene.claim_one()
    assert await scene.queue.release(claimed.job, claimed.fence)
    record = await scene.queue.job("b/0")
    assert record is not None
    assert (record.lane, record.crashes, record.solo_crashes) == ("suspect", 2, 0)
