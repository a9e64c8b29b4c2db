"""The census, and servers that were emptied or lost the scripts."""

from __future__ import annotations

from allrounder_service.jobs.redis_keys import key
from tests.jobs.contracts.contract import contract
from tests.jobs.scenes import Scene


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
async def the_census_of_a_server_that_was_emptied_counts_nothing(scene: Scene) -> None:
    await scene.client.flushall()
    census = await scene.queue.census()
    assert {(each.waiting, each.running) for each in census.lanes.values()} == {(0, 0)}
    # A controller may submit lines before the groups are created.
    await scene.submit("b", 2)
    census = await scene.queue.census()
    assert census.waiting == {"suspect": 0, "retry": 0, "batch": 2}
    await scene.prepare()


@contract
async def scripts_that_redis_forgot_are_sent_again(scene: Scene) -> None:
    await scene.create("b")
    await scene.client.script_flush()
    lease = await scene.lease_batch("b")
    await scene.client.script_flush()
    assert await scene.queue.begin(lease)
