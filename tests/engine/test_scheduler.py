"""Who runs, who waits, who computes what: without a model, a thread or a clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.core import Priority
from allrounder.engine.scheduling.request import (
    KV_LOOKAHEAD_TOKENS,
    EngineRequest,
    ScheduledRows,
    SchedulerLimits,
)
from allrounder.engine.scheduling.scheduler import (
    BATCH_SHARE,
    MAX_PASSES,
    MIN_CHUNK_ROWS,
    QUIET_STEPS,
    Scheduler,
)
from allrounder.errors import DeadlineExceeded, QueueFull
from tests.engine.queueing import compute, queued

BATCH = Priority.BATCH


def _scheduler(
    *, running: int = 2, queue: int = 30, kv: int = 1000, rows: int = 256, encoded: int = 10**6
) -> Scheduler:
    return Scheduler(
        SchedulerLimits(
            max_running=running,
            max_queue=queue,
            kv_bytes=kv,
            max_step_rows=rows,
            max_encoded=encoded,
        )
    )


def _submit(scheduler: Scheduler, *requests: EngineRequest) -> None:
    for request in requests:
        scheduler.submit(request, 0.0)


def _step(scheduler: Scheduler) -> dict[str, int]:
    step = scheduler.compose()
    compute(step)
    return {each.request.id: each.num_rows for each in step}


def _admit(scheduler: Scheduler) -> list[str]:
    return [request.id for request in scheduler.admit()]


def _preempt(scheduler: Scheduler) -> list[str]:
    victims = scheduler.preempt()
    for request in victims:
        request.restart()
    return [request.id for request in victims]


def test_interactive_requests_go_before_batch_ones() -> None:
    scheduler = _scheduler(running=1)
    _submit(scheduler, queued("batch", priority=BATCH), queued("chat"))
    assert _admit(scheduler) == ["chat"]
    scheduler.release("chat")
    assert _admit(scheduler) == ["batch"]


def test_a_tenth_of_the_slots_is_for_batch_while_any_wait() -> None:
    scheduler = _scheduler(running=20, queue=100)
    _submit(scheduler, *(queued(f"chat{idx}") for idx in range(40)))
    _submit(scheduler, *(queued(f"batch{idx}", priority=BATCH) for idx in range(10)))
    admitted = _admit(scheduler)
    assert sum(name.startswith("batch") for name in admitted) == 2
    assert len(admitted) == 20


def test_one_admission_in_ten_is_for_batch_even_with_a_single_slot() -> None:
    scheduler = _scheduler(running=1, queue=100)
    _submit(scheduler, *(queued(f"chat{idx}") for idx in range(40)))
    _submit(scheduler, *(queued(f"batch{idx}", priority=BATCH) for idx in range(10)))
    order = []
    for _ in range(30):
        (name,) = _admit(scheduler)
        order.append(name)
        scheduler.release(name)
    batch = [idx for idx, name in enumerate(order) if name.startswith("batch")]
    assert batch == [BATCH_SHARE - 1, 2 * BATCH_SHARE - 1, 3 * BATCH_SHARE - 1]


def test_an_interactive_request_takes_a_slot_that_batch_holds_beyond_its_share() -> None:
    scheduler = _scheduler(running=3)
    _submit(scheduler, *(queued(f"batch{idx}", priority=BATCH) for idx in range(3)))
    _admit(scheduler)
    _submit(scheduler, queued("chat"))
    assert _preempt(scheduler) == ["batch2"]
    assert _admit(scheduler) == ["chat"]
    assert _preempt(scheduler) == []


def test_beside_interactive_requests_few_batch_ones_are_computed_and_in_small_parts() -> None:
    scheduler = _scheduler(running=20)
    _submit(scheduler, *(queued(f"b{n}", priority=BATCH) for n in range(12)))
    _admit(scheduler)
    assert len(_step(scheduler)) == 12
    _submit(scheduler, queued("i"))
    _admit(scheduler)
    assert set(_step(scheduler)) == {"i", "b0", "b1"}, "two of twenty slots are for batch"
    scheduler.release("i")
    counts = [len(_step(scheduler)) for _ in range(QUIET_STEPS)]
    assert counts == [2] * (QUIET_STEPS - 1) + [12]


def test_a_batch_prompt_goes_in_small_parts_beside_an_interactive_one() -> None:
    scheduler = _scheduler(running=20)
    _submit(scheduler, queued("i"), queued("large", priority=BATCH, rows=200))
    _admit(scheduler)
    assert _step(scheduler) == {"i": 10, "large": MIN_CHUNK_ROWS}


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = _scheduler(queue=1)
    _submit(scheduler, queued("first"))
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(queued("second"), 0.0)
    assert caught.value.retry_after_seconds
    assert caught.value.retry_after_seconds >= 1


def test_neither_kind_of_request_shuts_the_other_out() -> None:
    scheduler = _scheduler(running=1, queue=2)
    for name in ("i0", "i1"):
        _submit(scheduler, queued(name))
    with pytest.raises(QueueFull):
        _submit(scheduler, queued("i2"))
    for name in ("b0", "b1"):
        _submit(scheduler, queued(name, priority=BATCH))
    with pytest.raises(QueueFull):
        _submit(scheduler, queued("b2", priority=BATCH))
    assert scheduler.num_waiting == 4


def test_the_estimate_follows_recent_service_times() -> None:
    scheduler = _scheduler(running=2)
    for idx in range(40):
        _submit(scheduler, queued(str(idx)))
        _admit(scheduler)
        scheduler.release(str(idx), service_seconds=20.0)
    assert scheduler.expected_wait_seconds() == 0
    _submit(scheduler, *(queued(f"late{idx}") for idx in range(5)))
    _admit(scheduler)
    assert scheduler.expected_wait_seconds() == pytest.approx(4 / 2 * 20.0, rel=0.05)


def test_a_hopeless_deadline_is_refused_at_the_door() -> None:
    scheduler = _scheduler(running=1)
    _submit(scheduler, queued("runs"))
    _admit(scheduler)
    for _ in range(30):
        scheduler.release("nobody", service_seconds=10.0)
    with pytest.raises(DeadlineExceeded):
        scheduler.submit(queued("hopeless", at=105.0), 100.0)
    scheduler.submit(queued("patient", at=150.0), 100.0)
    with pytest.raises(DeadlineExceeded):
        _scheduler().submit(queued("late", at=99.0), 100.0)


def test_memory_bounds_what_runs_and_a_small_one_does_not_pass_a_large_one() -> None:
    scheduler = _scheduler(running=4, kv=10)
    for name, kv in (("a", 6), ("b", 6), ("c", 1)):
        _submit(scheduler, queued(name, kv=kv))
    assert _admit(scheduler) == ["a"]
    scheduler.release("a")
    assert _admit(scheduler) == ["b", "c"]


def test_requests_that_wait_for_kv_while_slots_are_free_are_counted() -> None:
    row = 2**19
    scheduler = _scheduler(running=16, kv=4 * 2**30)
    large = (queued(f"r{idx}", rows=2944, kv=2944 * row, per_token=row) for idx in range(6))
    _submit(scheduler, *large)
    assert scheduler.num_waiting_for_kv == 0, "nobody has been turned down yet"
    assert _admit(scheduler) == ["r0", "r1"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 4)
    assert scheduler.num_waiting_for_kv == 4
    assert 2 * 2944 * row < 0.75 * 4 * 2**30, "far from full"
    for name in ("r2", "r3", "r4", "r5"):
        scheduler.release(name)
    assert _admit(scheduler) == []
    assert scheduler.num_waiting_for_kv == 0


def test_who_waits_for_a_slot_or_for_the_encoder_does_not_wait_for_kv() -> None:
    scheduler = _scheduler(running=1, kv=10)
    _submit(scheduler, queued("a", kv=6), queued("b", kv=6))
    assert _admit(scheduler) == ["a"]
    assert scheduler.num_waiting_for_kv == 0
    scheduler = _scheduler(running=9, encoded=1000)
    _submit(scheduler, *(queued(f"r{idx}", encoded=600) for idx in range(3)))
    assert _admit(scheduler) == ["r0"]
    assert scheduler.num_waiting_for_kv == 0


def test_batch_requests_that_wait_for_kv_are_not_counted_but_who_waits_behind_them_is() -> None:
    scheduler = _scheduler(running=20, kv=10)
    _submit(scheduler, *(queued(f"b{idx}", priority=BATCH, kv=6) for idx in range(5)))
    assert _admit(scheduler) == ["b0"]
    assert (scheduler.num_waiting, scheduler.num_waiting_for_kv) == (4, 0)
    _submit(scheduler, queued("chat", kv=6))
    assert _admit(scheduler) == []
    assert scheduler.num_waiting_for_kv == 1


def test_kv_is_reserved_for_some_tokens_not_for_the_longest_answer() -> None:
    scheduler = _scheduler(running=8, kv=3 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, *(queued(f"r{idx}", kv=10, per_token=1, tokens=500) for idx in range(5)))
    assert len(_admit(scheduler)) == 3


def test_when_kv_runs_short_the_youngest_gives_way_and_comes_back_first() -> None:
    scheduler = _scheduler(running=8, kv=2 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, *(queued(f"r{idx}", kv=10, per_token=1, tokens=500) for idx in range(3)))
    assert _admit(scheduler) == ["r0", "r1"]
    _step(scheduler)
    assert _preempt(scheduler) == ["r1"]
    assert _admit(scheduler) == []
    steps = 0
    while "r1" not in _admit(scheduler):
        assert _step(scheduler) == {"r0": 1}
        steps += 1
        if steps == 5:
            scheduler.release("r0")
    assert _step(scheduler)["r1"] == 11, "prompt and the one token that there was"


def test_batch_requests_give_way_before_interactive_ones() -> None:
    scheduler = _scheduler(running=8, kv=2 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, queued("batch", priority=BATCH, kv=10, per_token=1, tokens=500))
    _admit(scheduler)
    _submit(scheduler, queued("chat", kv=10, per_token=1, tokens=500))
    _admit(scheduler)
    _step(scheduler)
    assert _preempt(scheduler) == ["batch"]


def test_requests_of_the_running_layer_signature_may_pass_but_only_so_often() -> None:
    scheduler = _scheduler(running=1, queue=100)
    _submit(scheduler, queued("first", signature="A"))
    order = _admit(scheduler)
    _submit(scheduler, queued("other", signature="B"))
    _submit(scheduler, *(queued(f"alike{idx}", signature="A") for idx in range(9)))
    scheduler = _drain_one_by_one(scheduler, order)
    assert order[0] == "first"
    assert order.index("other") <= 1 + MAX_PASSES


def _drain_one_by_one(scheduler: Scheduler, order: list[str]) -> Scheduler:
    """Two slots by turns, so that somebody is always running when the next is chosen."""
    while scheduler.num_waiting:
        scheduler._limits = SchedulerLimits(max_running=2, max_queue=100, kv_bytes=1000)
        admitted = _admit(scheduler)
        order += admitted
        scheduler.release(order[len(order) - len(admitted) - 1])
    return scheduler


def test_a_long_prompt_is_computed_in_parts_between_the_tokens_of_others() -> None:
    scheduler = _scheduler(running=3, rows=100)
    _submit(scheduler, queued("quick", rows=20), queued("long", rows=250))
    _admit(scheduler)
    seen = [_step(scheduler) for _ in range(4)]
    assert [step["long"] for step in seen] == [80, 99, 71, 1]
    assert [step["quick"] for step in seen] == [20, 1, 1, 1]


def test_a_prompt_that_cannot_be_split_runs_whole_when_its_turn_comes() -> None:
    scheduler = _scheduler(running=3, rows=100)
    _submit(scheduler, queued("first", rows=60), queued("whole", rows=250, splittable=False))
    _admit(scheduler)
    assert _step(scheduler) == {"first": 60}
    assert _step(scheduler) == {"first": 1, "whole": 250}
    assert _step(scheduler) == {"first": 1, "whole": 1}


def test_many_decoding_requests_never_shut_prompts_out() -> None:
    scheduler = _scheduler(running=100, rows=64, queue=200)
    _submit(scheduler, *(queued(f"r{idx}", rows=1) for idx in range(80)))
    _admit(scheduler)
    while len(step := _step(scheduler)) < 80 or set(step.values()) != {1}:
        pass
    _submit(scheduler, queued("new", rows=100))
    _admit(scheduler)
    assert _step(scheduler)["new"] > 0


def test_images_are_encoded_a_bounded_number_of_tokens_at_a_time() -> None:
    scheduler = _scheduler(running=9, encoded=1000)
    _submit(scheduler, *(queued(f"r{idx}", encoded=400) for idx in range(5)))
    assert [len(_admit(scheduler)) for _ in range(3)] == [2, 2, 1]
    _submit(scheduler, queued("huge", encoded=5000))
    assert _admit(scheduler) == ["huge"]


def test_deadlines_are_seen_waiting_and_running() -> None:
    scheduler = _scheduler(running=1)
    for name, at in (("runs", 5.0), ("waits", 3.0), ("patient", None)):
        _submit(scheduler, queued(name, at=at))
    _admit(scheduler)
    assert {request.id for request in scheduler.expired(4.0)} == {"waits"}
    assert {request.id for request in scheduler.expired(5.0)} == {"runs", "waits"}


class _Device:
    """Remembers what each request has computed, and what it must still hold."""

    def __init__(self) -> None:
        self.requests: dict[str, EngineRequest] = {}
        self.computed: dict[str, int] = {}
        self.generated: dict[str, int] = {}

    def run(self, scheduled: ScheduledRows) -> None:
        request, num_rows = scheduled.request, scheduled.num_rows
        needed = request.demand.num_rows + self.generated[request.id]
        done = self.computed.get(request.id, 0)
        assert 0 < num_rows <= max(needed - done, 1)
        assert request.demand.splittable or num_rows == 1 or not done
        self.computed[request.id] = done + num_rows
        if self.computed[request.id] >= needed:
            self.generated[request.id] += 1

    def kv_bytes(self) -> int:
        return sum(
            self.requests[name].demand.kv_bytes(self.generated[name]) for name in self.computed
        )


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 8), st.integers(64, 200))
def test_no_request_is_lost_and_no_limit_is_passed(
    seed: int, running: int, queue: int, rows: int
) -> None:
    draw = random.Random(seed)
    scheduler = _scheduler(running=running, queue=queue, kv=400, rows=rows)
    device, alive = _Device(), set[str]()
    for turn in range(4000):
        if turn < 80 and draw.random() < 0.6:
            request = queued(
                f"r{turn}",
                priority=draw.choice(list(Priority)),
                rows=draw.randint(1, 300),
                kv=draw.randint(1, 200),
                per_token=draw.randint(0, 5),
                tokens=draw.randint(1, 40),
                splittable=draw.random() < 0.7,
                signature=draw.randint(0, 2),
            )
            try:
                scheduler.submit(request, 0.0)
                device.requests[request.id], device.generated[request.id] = request, 0
                alive.add(request.id)
            except QueueFull:
                assert queue <= scheduler.num_waiting <= 2 * queue + running
        if turn < 80 and alive and draw.random() < 0.1:
            _forget(scheduler, device, alive, draw.choice(sorted(alive)))
        for name in _preempt(scheduler):
            del device.computed[name]
        for name in _admit(scheduler):
            device.computed[name] = 0
        assert scheduler.kv_bytes_reserved <= 400
        step = scheduler.compose()
        assert len({each.request.id for each in step}) == len(step)
        for each in step:
            device.run(each)
        compute(step)
        assert device.kv_bytes() <= 400
        for name in [n for n in alive if device.generated[n] >= device.requests[n].max_tokens]:
            _forget(scheduler, device, alive, name)
        assert scheduler.num_running <= running
        assert scheduler.num_running + scheduler.num_waiting == len(alive)
        assert step or not alive, "something waits but nothing runs"
        if turn >= 80 and not alive:
            break
    assert not alive, "every request comes to an end"


def _forget(scheduler: Scheduler, device: _Device, alive: set[str], name: str) -> None:
    scheduler.release(name)
    device.computed.pop(name, None)
    alive.discard(name)
