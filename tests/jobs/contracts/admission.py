"""Admission control, idempotency keys, and fairness between tenants."""

from __future__ import annotations

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.queue import Admission
from allrounder_service.jobs.records import JobState, LineError
from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts.contract import contract, numbers
from tests.jobs.scenes import Scene, new_batch, refs


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
async def ended_lines_count_against_the_limit_until_the_clean_up(scene: Scene) -> None:
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
async def the_lane_keeps_every_line_of_a_window_in_order(scene: Scene) -> None:
    await scene.submit("b", 200)
    claimed = await scene.claim("w", 200)
    assert numbers(claimed) == list(range(keys.WINDOW))


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
async def every_end_of_a_line_refills_the_window(scene: Scene) -> None:
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
async def running_lines_do_not_count_in_the_window(scene: Scene) -> None:
    """However many workers there are, one tenant alone can fill them all."""
    scene.limit(window=4)
    await scene.submit("b", 40)
    for worker in range(8):
        assert len(await scene.claim(f"w{worker}", 4, running=0)) == 4
    assert await scene.client.hgetall(key("window")) == {"t": "4"}
