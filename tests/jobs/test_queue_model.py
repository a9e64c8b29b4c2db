"""Any sequence of transitions, with lost replies and with holders of leases that crash or pause.

The model says after each step what Redis must hold; at the end all holders crash, and a new worker
and batch controller must bring every batch to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.queue import BatchLease
from allrounder_service.jobs.records import JobState, LineError, LineResult
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import read_ranks, scan_hashes
from tests.jobs.model import LEASED, NOW, WINDOW, Model
from tests.jobs.scenes import LONG_AGO_MS, Scene, connected, new_batch, refs, result
from tests.jobs.servers import BINARIES, RunningServer, running_server

T = TypeVar("T")
TENANTS = ("a", "b")
WORKERS = ("w1", "w2", "w3")
ENDS = (JobState.DONE, JobState.DONE, JobState.FAILED, JobState.CANCELLED)
# Longer than any example takes, shorter than the idle time that `Scene.lapse` sets.
LEASE_MS = LONG_AGO_MS // 2
LATEST = 0
indexes = st.integers(0, 1_000)
mostly = st.sampled_from((True, True, True, False))


class QueueMachine(RuleBasedStateMachine):
    """Every choice is a number; which holder or line it means depends on what there is."""

    def __init__(self, runner: asyncio.Runner, client: Redis, sources=None) -> None:
        super().__init__()
        self.runner = runner
        self.model = Model()
        # What each living worker believes to hold, and every execution that was ever given out.
        self.leases: dict[str, dict[str, int]] = {name: {} for name in WORKERS}
        self.given: list[tuple[str, int]] = []
        self.batch_leases: list[BatchLease] = []
        self.num_batches = 0
        # Key, tenant and batch of the order before.
        self.latest: tuple[str, str, str] | None = None
        self.fences: dict[str, int] = {}
        self.run(client.flushall())
        self.scene = Scene(client, sources=sources)
        self.scene.limit(window=WINDOW, lease_ms=LEASE_MS)
        self.queue = self.scene.queue
        self.run(self.scene.prepare())

    def run(self, call: Awaitable[T]) -> T:
        return self.runner.run(_await(call))

    @rule(lines=st.integers(1, 7), tenant=st.sampled_from(TENANTS), repeated=st.booleans())
    def create(self, lines, tenant, repeated) -> None:
        """A repeated order brings its key and another id, and its batch if that is still there."""
        self.num_batches += 1
        id = f"b{self.num_batches}"
        if not repeated or not self.latest:
            self.latest = (f"k{id}", tenant, id)
        order_key, tenant, first = self.latest
        known = self.model.batches.get(first)
        found = self.run(self.queue.create(new_batch(id, lines, tenant, idempotency_key=order_key)))
        assert found == (("same", first) if known else ("ok", id))
        if not known:
            self.latest = (order_key, tenant, id)
            self.model.create(id, tenant, lines)

    @rule(answered=mostly)
    def lease_batch(self, answered) -> None:
        due = self.model.due()
        lease = self.run(self.queue.lease_batch())
        assert (lease is not None) == bool(due)
        if lease is not None:
            assert lease.batch in due
            assert lease.fence == self.model.lease_batch(lease.batch)
            if answered:
                self.batch_leases.append(lease)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes, good=mostly)
    def begin(self, which, good) -> None:
        lease = self.batch_lease(which)
        errors = () if good else (LineError(code="c", message="m", line=1),)
        found = self.run(self.queue.begin(lease, errors))
        assert found == self.model.begin(lease.batch, lease.fence, good=good)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes, back=st.integers(-1, 2), count=st.integers(1, 7), whole=mostly)
    def submit(self, which, back, count, whole) -> None:
        lease = self.batch_lease(which)
        batch = self.model.batches.get(lease.batch)
        known = batch.submitted if batch else 0
        first = max(0, known - back)
        count = max(1, batch.total - first) if batch and whole else count
        found = self.run(self.queue.submit(lease, first, refs(first, first + count)))
        assert found == self.model.submit(lease.batch, lease.fence, first, count)

    @rule()
    def serve(self) -> None:
        """Every step of a controller for the batch that has been due longest."""
        known = len(self.batch_leases)
        self.lease_batch(answered=True)
        if len(self.batch_leases) > known:
            self.begin(LATEST, good=True)
            self.expire(LATEST)
            self.submit(LATEST, back=0, count=1, whole=True)
            self.withdraw(LATEST)
            self.finalize(LATEST)
            self.sweep(LATEST)
            self.forget(LATEST)
            self.hand_back(LATEST)

    @initialize(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=3))
    def begin_with_work(self, sizes) -> None:
        for size, tenant in zip(sizes, TENANTS * 2, strict=False):
            self.create(size, tenant, repeated=False)
            self.serve()

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(1, 4), state=st.sampled_from(ENDS))
    def work(self, worker, want, state) -> None:
        self.claim(worker, want, answered=True)
        for id, fence in [*self.leases[worker].items()]:
            self.publish(id, fence, state, result(f"{id}#{fence}"))
            del self.leases[worker][id]

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(1, 4), answered=mostly)
    def crash_at_work(self, worker, want, answered) -> None:
        self.leases[worker] = {}
        self.claim(worker, want, answered)
        self.lose_a_worker(worker, noticed=True, dies=answered)

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(0, 4), answered=mostly)
    def claim(self, worker, want, answered) -> None:
        held = self.leases[worker]
        claimed = self.run(self.queue.claim(worker, want, running=len(held)))
        lines = self.model.claim(worker, want, len(held))
        assert [(each.job, each.fence) for each in claimed] == [
            (line.id, line.fence) for line in lines
        ]
        assert all(fence > 0 and (id, fence) not in self.given for id, fence in pairs(claimed))
        self.given += pairs(claimed)
        if answered:
            held |= dict(pairs(claimed))
        lanes = [
            self.model.lines[id].lane for id, fence in held.items() if self.is_valid(id, fence)
        ]
        assert "suspect" not in lanes or len(held) == 1, "another line runs beside a suspect"

    @rule(worker=st.sampled_from(WORKERS), late=st.booleans())
    def heartbeat(self, worker, late) -> None:
        held = self.leases[worker]
        if late:
            self.lose_a_worker(worker, noticed=False, dies=False)
        answer = self.run(self.queue.heartbeat(worker, held))
        assert (set(answer.lost), set(answer.stop)) == self.model.heartbeat(held)
        for id in answer.lost:
            del held[id]
        if late:
            self.reap()

    @rule(two=st.permutations(WORKERS), want=st.integers(1, 3), state=st.sampled_from(ENDS))
    def freeze_at_work(self, two, want, state) -> None:
        """When it resumes, another worker has its lines."""
        frozen, other, _ = two
        self.claim(frozen, want, answered=True)
        held = [*self.leases[frozen].items()]
        self.lose_a_worker(frozen, noticed=True, dies=True)
        self.claim(other, want, answered=True)
        for id, fence in held:
            beaten = self.run(self.queue.heartbeat(frozen, {id: fence}))
            assert (set(beaten.lost), set(beaten.stop)) == self.model.heartbeat({id: fence})
            self.publish(id, fence, state, result(f"{id}#{fence}"))

    @precondition(lambda self: any(self.leases.values()))
    @rule(which=indexes, state=st.sampled_from(ENDS), answered=mostly)
    def done(self, which, state, answered) -> None:
        worker, id, fence = self.held(which)
        self.publish(id, fence, state, result(f"{id}#{fence}"))
        if answered:
            del self.leases[worker][id]

    @precondition(lambda self: self.given)
    @rule(which=indexes, state=st.sampled_from(ENDS), other=st.booleans())
    def done_by_a_ghost(self, which, state, other) -> None:
        id, fence = self.ghost(which)
        self.publish(id, fence, state, result(f"{id}#{fence}" + "!" * other))

    def publish(self, id: str, fence: int, state: JobState, answer: LineResult) -> None:
        found = self.run(self.queue.done(id, fence, state, answer))
        text = answer.model_dump_json(exclude_defaults=True)
        assert found == self.model.done(id, fence, state, text)

    @precondition(lambda self: self.given)
    @rule(which=indexes)
    def heartbeat_by_a_ghost(self, which) -> None:
        id, fence = self.ghost(which)
        line = self.model.lines[id]
        answer = self.run(self.queue.heartbeat(line.owner or "ghost", {id: fence}))
        assert (set(answer.lost), set(answer.stop)) == self.model.heartbeat({id: fence})

    @precondition(lambda self: self.given)
    @rule(which=indexes, failed=st.booleans())
    def release(self, which, failed) -> None:
        id, fence = self.ghost(which)
        found = self.run(self.queue.release(id, fence, failed=failed))
        assert found == self.model.release(id, fence, failed=failed)
        for held in self.leases.values():
            if held.get(id) == fence:
                del held[id]

    @rule(worker=st.sampled_from(WORKERS), noticed=mostly, dies=st.booleans())
    def lose_a_worker(self, worker, noticed, dies) -> None:
        """It crashes, or resumes later and still assumes its leases."""
        self.run(self.scene.lapse(worker))
        self.model.lapse(worker)
        if dies:
            self.leases[worker] = {}
        if noticed:
            self.reap()

    @rule()
    def reap(self) -> None:
        assert self.run(self.queue.reap()) == self.model.reap()

    @rule(worker=st.sampled_from(WORKERS))
    def retire(self, worker) -> None:
        self.run(self.queue.retire(worker))
        self.model.retire(worker)

    @precondition(lambda self: self.model.solo)
    @rule()
    def let_the_solo_lease_expire(self) -> None:
        self.run(self.scene.client.delete(key("solo")))
        self.model.solo = ""

    @precondition(lambda self: self.model.batches)
    @rule(which=indexes, tenant=st.sampled_from(TENANTS))
    def cancel(self, which, tenant) -> None:
        id = self.batch(which)
        assert self.run(self.queue.cancel(id, tenant)) == self.model.cancel(id, tenant)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def expire(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.expire(lease))
        assert found == self.model.expire(lease.batch, lease.fence)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def withdraw(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.withdraw(lease, 0))
        assert found == self.model.withdraw(lease.batch, lease.fence)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def finalize(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.scene.finish(lease))
        assert found == self.model.finalize(lease.batch, lease.fence)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def sweep(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.sweep(lease, 0))
        assert found == self.model.sweep(lease.batch, lease.fence)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def forget(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.forget(lease))
        assert found == self.model.forget(lease.batch, lease.fence)

    @precondition(lambda self: self.model.batches)
    @rule(which=indexes)
    def purge(self, which) -> None:
        id = self.batch(which)
        assert self.run(self.queue.purge(id)) == self.model.purge(id)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def hand_back(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.hand_back(lease, poll_seconds=0))
        assert found == self.model.hand_back(lease.batch, lease.fence)

    @precondition(lambda self: self.batch_leases)
    @rule(which=indexes)
    def renew_batch(self, which) -> None:
        lease = self.batch_lease(which)
        found = self.run(self.queue.renew_batch(lease))
        assert found == self.model.renew_batch(lease.batch, lease.fence)

    @precondition(lambda self: self.model.batches)
    @rule(which=indexes)
    def let_a_batch_lease_run_out(self, which) -> None:
        batch = self.model.batches[self.batch(which)]
        if batch.due == LEASED:
            self.run(self.scene.client.zadd(key(keys.DUE), {batch.id: 0}))
            batch.due = NOW

    @precondition(lambda self: self.model.batches)
    @rule(which=indexes)
    def let_its_time_be_over(self, which) -> None:
        batch = self.model.batches[self.batch(which)]
        if batch.has_ended:
            self.run(self.scene.set_field(batch.id, forget_ms=1))
            batch.may_be_forgotten = True
        else:
            self.run(self.scene.set_field(batch.id, expires_ms=1))
            batch.is_over = True
        if batch.due != LEASED:
            self.run(self.scene.client.zadd(key(keys.DUE), {batch.id: 0}))
            batch.due = NOW

    @invariant()
    def redis_holds_what_the_model_says(self) -> None:
        batches, jobs = self.run(self.read())
        model = self.model
        assert batches.keys() == model.batches.keys()
        for id, batch in model.batches.items():
            fields = batches[id]
            assert [fields[name] for name in ("status", "ending", "swept")] == [
                batch.status,
                batch.ending,
                str(int(batch.swept)),
            ]
            names = ("submitted", "next", "remaining", "completed", "failed", "fence")
            assert [int(fields[name]) for name in names] == [
                *(batch.submitted, batch.next, batch.remaining, batch.counts["good"]),
                *(batch.failed, batch.fence),
            ]
        assert jobs.keys() == model.lines.keys()
        for id, line in model.lines.items():
            fields = jobs[id]
            counters = ("fence", "crashes", "solo_crashes", "published")
            assert [int(fields[name]) for name in counters] == [
                *(line.fence, line.crashes, line.solo_crashes, line.published)
            ]
            assert (fields["state"], fields.get("slane", "")) == (line.state, line.lane)
            assert (fields.get("result") or None) == line.result
            assert line.fence >= self.fences.get(id, 0), "a fence fell"
            self.fences[id] = line.fence
        assert self.run(self.scene.violations()) == []

    def teardown(self) -> None:
        """All holders have crashed. What is left must end, each line published exactly once."""
        for worker in WORKERS:
            self.lose_a_worker(worker, noticed=True, dies=True)
        before = dict(self.model.published)
        self.run(self.end_everything())
        batches, jobs = self.run(self.read())
        for id, fields in batches.items():
            assert fields["status"] in ("completed", "failed", "cancelled", "expired"), id
        assert {fields["published"] for fields in jobs.values()} <= {"1"}
        for id, (state, text) in before.items():
            assert (jobs[id]["state"], jobs[id].get("result") or None) == (state, text)
        assert self.run(self.scene.violations()) == []
        census = self.run(self.queue.census())
        assert (census.lines, census.backlog, census.dead) == (0, 0, self.model.num_dead)
        assert {(each.waiting, each.running) for each in census.lanes.values()} == {(0, 0)}
        left = self.run(self.scene.dump())
        assert not left.get(key("window"))
        assert not [name for name in left if name.startswith(key("backlog"))]

    async def end_everything(self) -> None:
        client = self.scene.client
        async with asyncio.timeout(60):
            await client.delete(key("solo"))
            for id in await read_ranks(client, key(keys.DUE)):
                await client.zadd(key(keys.DUE), {id: 0})
                if self.model.batches[id].may_be_forgotten:
                    await self.scene.set_field(id, forget_ms=2**52)
            await self.scene.run_dry()

    async def read(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
        client = self.scene.client
        return await scan_hashes(client, key("batch", "")), await scan_hashes(
            client, key("job", "")
        )

    def batch_lease(self, which: int) -> BatchLease:
        return self.batch_leases[-1 - which % len(self.batch_leases)]

    def batch(self, which: int) -> str:
        return list(self.model.batches)[which % len(self.model.batches)]

    def held(self, which: int) -> tuple[str, str, int]:
        all_held = [(w, id, fence) for w, held in self.leases.items() for id, fence in held.items()]
        return all_held[which % len(all_held)]

    def ghost(self, which: int) -> tuple[str, int]:
        """An execution that was given out once; first those whose line runs elsewhere now."""
        running = {line.id for line in self.model.lines.values() if line.state == "running"}
        stale = [(id, n) for id, n in self.given if id in running and not self.is_valid(id, n)]
        choices = stale if stale and which % 2 else self.given
        return choices[which // 2 % len(choices)]

    def is_valid(self, id: str, fence: int) -> bool:
        line = self.model.lines[id]
        return line.state == "running" and line.fence == fence


async def _await(call: Awaitable[T]) -> T:
    return await call


def pairs(claimed) -> list[tuple[str, int]]:
    return [(each.job, each.fence) for each in claimed]


@pytest.fixture(scope="module", params=BINARIES)
def quick_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp(request.param)
    with running_server(request.param, folder, appendonly="no", appendfsync="no") as server:
        yield server


def explore(server: RunningServer, sources=None, **changes: Any) -> None:
    """Raises at the first sequence after which Redis does not hold what the model says."""
    with asyncio.Runner() as runner:
        context = connected(server.url)
        client = runner.run(context.__aenter__())
        try:
            machine: Any = partial(QueueMachine, runner, client, sources)
            run_machine(
                machine,
                settings=settings(suppress_health_check=[HealthCheck.too_slow], **changes),
            )
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.mark.timeout(3_600)
def test_any_sequence_leaves_redis_as_the_model_says_and_comes_to_its_end(
    quick_server: RunningServer, long_form: bool
) -> None:
    if long_form:
        explore(quick_server, max_examples=500, stateful_step_count=50)
    else:
        explore(quick_server, max_examples=30, stateful_step_count=40)
