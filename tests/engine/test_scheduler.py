"""Who runs, who waits, who computes what: without a model, a thread or a clock."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allrounder.core import Priority
from allrounder.engine.scheduling.scheduler import (
    BATCH_SHARE,
    MAX_PASSES,
    MIN_CHUNK_ROWS,
    QUIET_STEPS,
    Scheduler,
)
from allrounder.engine.scheduling.tickets import KV_LOOKAHEAD_TOKENS, Demand, Limits, Share, Ticket
from allrounder.errors import DeadlineExceeded, QueueFull

BATCH = Priority.BATCH


def _ticket(
    name: str,
    *,
    priority: Priority = Priority.INTERACTIVE,
    rows: int = 10,
    kv: int = 0,
    per_token: int = 0,
    encoded: int = 0,
    tokens: int = 8,
    splittable: bool = True,
    cohort: Hashable = None,
    at: float | None = None,
) -> Ticket:
    demand = Demand(
        num_rows=rows,
        num_encoded=encoded,
        splittable=splittable,
        kv_prompt_bytes=kv,
        kv_token_bytes=per_token,
        cohort=cohort,
    )
    return Ticket(id=name, priority=priority, demand=demand, max_tokens=tokens, deadline=at)


def _scheduler(
    *, running: int = 2, queue: int = 30, kv: int = 1000, rows: int = 256, encoded: int = 10**6
) -> Scheduler:
    return Scheduler(
        Limits(
            max_running=running,
            max_queue=queue,
            kv_bytes=kv,
            max_step_rows=rows,
            max_encoded=encoded,
        )
    )


def _submit(scheduler: Scheduler, *tickets: Ticket) -> None:
    for ticket in tickets:
        scheduler.submit(ticket, 0.0)


def _step(scheduler: Scheduler) -> dict[str, int]:
    shares = scheduler.compose()
    scheduler.advance(shares)
    return {share.id: share.num_rows for share in shares}


def test_interactive_requests_go_before_batch_ones() -> None:
    scheduler = _scheduler(running=1)
    _submit(scheduler, _ticket("batch", priority=BATCH), _ticket("chat"))
    assert scheduler.admit() == ["chat"]
    scheduler.release("chat")
    assert scheduler.admit() == ["batch"]


def test_a_tenth_of_the_slots_is_for_batch_while_any_wait() -> None:
    scheduler = _scheduler(running=20, queue=100)
    _submit(scheduler, *(_ticket(f"chat{idx}") for idx in range(40)))
    _submit(scheduler, *(_ticket(f"batch{idx}", priority=BATCH) for idx in range(10)))
    admitted = scheduler.admit()
    assert sum(name.startswith("batch") for name in admitted) == 2
    assert len(admitted) == 20


def test_one_admission_in_ten_is_for_batch_even_with_a_single_slot() -> None:
    scheduler = _scheduler(running=1, queue=100)
    _submit(scheduler, *(_ticket(f"chat{idx}") for idx in range(40)))
    _submit(scheduler, *(_ticket(f"batch{idx}", priority=BATCH) for idx in range(10)))
    order = []
    for _ in range(30):
        (name,) = scheduler.admit()
        order.append(name)
        scheduler.release(name)
    batch = [idx for idx, name in enumerate(order) if name.startswith("batch")]
    assert batch == [BATCH_SHARE - 1, 2 * BATCH_SHARE - 1, 3 * BATCH_SHARE - 1]


def test_an_interactive_request_takes_a_slot_that_batch_holds_beyond_its_share() -> None:
    scheduler = _scheduler(running=3)
    _submit(scheduler, *(_ticket(f"batch{idx}", priority=BATCH) for idx in range(3)))
    scheduler.admit()
    _submit(scheduler, _ticket("chat"))
    assert scheduler.preempt() == ["batch2"]
    assert scheduler.admit() == ["chat"]
    assert scheduler.preempt() == []


def test_beside_interactive_requests_few_batch_ones_are_computed_and_in_small_parts() -> None:
    scheduler = _scheduler(running=20)
    _submit(scheduler, *(_ticket(f"b{n}", priority=BATCH) for n in range(12)))
    scheduler.admit()
    assert len(_step(scheduler)) == 12
    _submit(scheduler, _ticket("i"))
    scheduler.admit()
    assert set(_step(scheduler)) == {"i", "b0", "b1"}, "two of twenty slots are for batch"
    scheduler.release("i")
    counts = [len(_step(scheduler)) for _ in range(QUIET_STEPS)]
    assert counts == [2] * (QUIET_STEPS - 1) + [12]


def test_a_batch_prompt_goes_in_small_parts_beside_an_interactive_one() -> None:
    scheduler = _scheduler(running=20)
    _submit(scheduler, _ticket("i"), _ticket("large", priority=BATCH, rows=200))
    scheduler.admit()
    assert _step(scheduler) == {"i": 10, "large": MIN_CHUNK_ROWS}


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = _scheduler(queue=1)
    _submit(scheduler, _ticket("first"))
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(_ticket("second"), 0.0)
    assert caught.value.retry_after_seconds
    assert caught.value.retry_after_seconds >= 1


def test_neither_kind_of_request_shuts_the_other_out() -> None:
    scheduler = _scheduler(running=1, queue=2)
    for name in ("i0", "i1"):
        _submit(scheduler, _ticket(name))
    with pytest.raises(QueueFull):
        _submit(scheduler, _ticket("i2"))
    for name in ("b0", "b1"):
        _submit(scheduler, _ticket(name, priority=BATCH))
    with pytest.raises(QueueFull):
        _submit(scheduler, _ticket("b2", priority=BATCH))
    assert scheduler.num_waiting == 4


def test_the_estimate_follows_recent_service_times() -> None:
    scheduler = _scheduler(running=2)
    for idx in range(40):
        _submit(scheduler, _ticket(str(idx)))
        scheduler.admit()
        scheduler.release(str(idx), service_seconds=20.0)
    assert scheduler.expected_wait_seconds() == 0
    _submit(scheduler, *(_ticket(f"late{idx}") for idx in range(5)))
    scheduler.admit()
    assert scheduler.expected_wait_seconds() == pytest.approx(4 / 2 * 20.0, rel=0.05)


def test_a_hopeless_deadline_is_refused_at_the_door() -> None:
    scheduler = _scheduler(running=1)
    _submit(scheduler, _ticket("runs"))
    scheduler.admit()
    for _ in range(30):
        scheduler.release("nobody", service_seconds=10.0)
    with pytest.raises(DeadlineExceeded):
        scheduler.submit(_ticket("hopeless", at=105.0), 100.0)
    scheduler.submit(_ticket("patient", at=150.0), 100.0)
    with pytest.raises(DeadlineExceeded):
        _scheduler().submit(_ticket("late", at=99.0), 100.0)


def test_memory_bounds_what_runs_and_a_small_one_does_not_pass_a_large_one() -> None:
    scheduler = _scheduler(running=4, kv=10)
    for name, kv in (("a", 6), ("b", 6), ("c", 1)):
        _submit(scheduler, _ticket(name, kv=kv))
    assert scheduler.admit() == ["a"]
    scheduler.release("a")
    assert scheduler.admit() == ["b", "c"]


def test_requests_that_wait_for_kv_while_slots_are_free_are_counted() -> None:
    row = 2**19
    scheduler = _scheduler(running=16, kv=4 * 2**30)
    large = (_ticket(f"r{idx}", rows=2944, kv=2944 * row, per_token=row) for idx in range(6))
    _submit(scheduler, *large)
    assert scheduler.num_waiting_for_kv == 0, "nobody has been turned down yet"
    assert scheduler.admit() == ["r0", "r1"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 4)
    assert scheduler.num_waiting_for_kv == 4
    assert 2 * 2944 * row < 0.75 * 4 * 2**30, "far from full"
    for name in ("r2", "r3", "r4", "r5"):
        scheduler.release(name)
    assert scheduler.admit() == []
    assert scheduler.num_waiting_for_kv == 0


def test_who_waits_for_a_slot_or_for_the_encoder_does_not_wait_for_kv() -> None:
    scheduler = _scheduler(running=1, kv=10)
    _submit(scheduler, _ticket("a", kv=6), _ticket("b", kv=6))
    assert scheduler.admit() == ["a"]
    assert scheduler.num_waiting_for_kv == 0
    scheduler = _scheduler(running=9, encoded=1000)
    _submit(scheduler, *(_ticket(f"r{idx}", encoded=600) for idx in range(3)))
    assert scheduler.admit() == ["r0"]
    assert scheduler.num_waiting_for_kv == 0


def test_batch_requests_that_wait_for_kv_are_not_counted_but_who_waits_behind_them_is() -> None:
    scheduler = _scheduler(running=20, kv=10)
    _submit(scheduler, *(_ticket(f"b{idx}", priority=BATCH, kv=6) for idx in range(5)))
    assert scheduler.admit() == ["b0"]
    assert (scheduler.num_waiting, scheduler.num_waiting_for_kv) == (4, 0)
    _submit(scheduler, _ticket("chat", kv=6))
    assert scheduler.admit() == []
    assert scheduler.num_waiting_for_kv == 1


def test_kv_is_reserved_for_some_tokens_not_for_the_longest_answer() -> None:
    scheduler = _scheduler(running=8, kv=3 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, *(_ticket(f"r{idx}", kv=10, per_token=1, tokens=500) for idx in range(5)))
    assert len(scheduler.admit()) == 3


def test_when_kv_runs_short_the_youngest_gives_way_and_comes_back_first() -> None:
    scheduler = _scheduler(running=8, kv=2 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, *(_ticket(f"r{idx}", kv=10, per_token=1, tokens=500) for idx in range(3)))
    assert scheduler.admit() == ["r0", "r1"]
    _step(scheduler)
    assert scheduler.preempt() == ["r1"]
    assert scheduler.admit() == []
    steps = 0
    while "r1" not in scheduler.admit():
        assert _step(scheduler) == {"r0": 1}
        steps += 1
        if steps == 5:
            scheduler.release("r0")
    assert _step(scheduler)["r1"] == 11, "prompt and the one token that there was"


def test_batch_requests_give_way_before_interactive_ones() -> None:
    scheduler = _scheduler(running=8, kv=2 * (10 + KV_LOOKAHEAD_TOKENS))
    _submit(scheduler, _ticket("batch", priority=BATCH, kv=10, per_token=1, tokens=500))
    scheduler.admit()
    _submit(scheduler, _ticket("chat", kv=10, per_token=1, tokens=500))
    scheduler.admit()
    _step(scheduler)
    assert scheduler.preempt() == ["batch"]


def test_requests_of_the_running_cohort_may_pass_but_only_so_often() -> None:
    scheduler = _scheduler(running=1, queue=100)
    _submit(scheduler, _ticket("first", cohort="A"))
    order = scheduler.admit()
    _submit(scheduler, _ticket("other", cohort="B"))
    _submit(scheduler, *(_ticket(f"alike{idx}", cohort="A") for idx in range(9)))
    scheduler = _drain_one_by_one(scheduler, order)
    assert order[0] == "first"
    assert order.index("other") <= 1 + MAX_PASSES


def _drain_one_by_one(scheduler: Scheduler, order: list[str]) -> Scheduler:
    """Two slots by turns, so that somebody is always running when the next is chosen."""
    while scheduler.num_waiting:
        scheduler._limits = Limits(max_running=2, max_queue=100, kv_bytes=1000)
        admitted = scheduler.admit()
        order += admitted
        scheduler.release(order[len(order) - len(admitted) - 1])
    return scheduler


def test_a_long_prompt_is_computed_in_parts_between_the_tokens_of_others() -> None:
    scheduler = _scheduler(running=3, rows=100)
    _submit(scheduler, _ticket("quick", rows=20), _ticket("long", rows=250))
    scheduler.admit()
    seen = [_step(scheduler) for _ in range(4)]
    assert [step["long"] for step in seen] == [80, 99, 71, 1]
    assert [step["quick"] for step in seen] == [20, 1, 1, 1]


def test_a_prompt_that_cannot_be_split_runs_whole_when_its_turn_comes() -> None:
    scheduler = _scheduler(running=3, rows=100)
    _submit(scheduler, _ticket("first", rows=60), _ticket("whole", rows=250, splittable=False))
    scheduler.admit()
    assert _step(scheduler) == {"first": 60}
    assert _step(scheduler) == {"first": 1, "whole": 250}
    assert _step(scheduler) == {"first": 1, "whole": 1}


def test_many_decoding_requests_never_shut_prompts_out() -> None:
    scheduler = _scheduler(running=100, rows=64, queue=200)
    _submit(scheduler, *(_ticket(f"r{idx}", rows=1) for idx in range(80)))
    scheduler.admit()
    while len(step := _step(scheduler)) < 80 or set(step.values()) != {1}:
        pass
    _submit(scheduler, _ticket("new", rows=100))
    scheduler.admit()
    assert _step(scheduler)["new"] > 0


def test_images_are_encoded_a_bounded_number_of_tokens_at_a_time() -> None:
    scheduler = _scheduler(running=9, encoded=1000)
    _submit(scheduler, *(_ticket(f"r{idx}", encoded=400) for idx in range(5)))
    assert [len(scheduler.admit()) for _ in range(3)] == [2, 2, 1]
    _submit(scheduler, _ticket("huge", encoded=5000))
    assert scheduler.admit() == ["huge"]


def test_deadlines_are_seen_waiting_and_running() -> None:
    scheduler = _scheduler(running=1)
    for name, at in (("runs", 5.0), ("waits", 3.0), ("patient", None)):
        _submit(scheduler, _ticket(name, at=at))
    scheduler.admit()
    assert {ticket.id for ticket in scheduler.expired(4.0)} == {"waits"}
    assert {ticket.id for ticket in scheduler.expired(5.0)} == {"runs", "waits"}


class _Device:
    """Remembers what each request has computed, and what it must still hold."""

    def __init__(self) -> None:
        self.tickets: dict[str, Ticket] = {}
        self.computed: dict[str, int] = {}
        self.generated: dict[str, int] = {}

    def drop(self, name: str) -> None:
        self.computed.pop(name, None)

    def run(self, share: Share) -> None:
        ticket = self.tickets[share.id]
        needed = ticket.demand.num_rows + self.generated[share.id]
        done = self.computed.get(share.id, 0)
        assert 0 < share.num_rows <= max(needed - done, 1)
        assert ticket.demand.splittable or share.num_rows == 1 or not done
        self.computed[share.id] = done + share.num_rows
        if self.computed[share.id] >= needed:
            self.generated[share.id] += 1

    def kv_bytes(self) -> int:
        return sum(
            self.tickets[name].demand.kv_bytes(self.generated[name]) for name in self.computed
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
            ticket = _ticket(
                f"r{turn}",
                priority=draw.choice(list(Priority)),
                rows=draw.randint(1, 300),
                kv=draw.randint(1, 200),
                per_token=draw.randint(0, 5),
                tokens=draw.randint(1, 40),
                splittable=draw.random() < 0.7,
                cohort=draw.randint(0, 2),
            )
            try:
                scheduler.submit(ticket, 0.0)
                device.tickets[ticket.id], device.generated[ticket.id] = ticket, 0
                alive.add(ticket.id)
            except QueueFull:
                assert queue <= scheduler.num_waiting <= 2 * queue + running
        if turn < 80 and alive and draw.random() < 0.1:
            _forget(scheduler, device, alive, draw.choice(sorted(alive)))
        for name in scheduler.preempt():
            device.drop(name)
        for name in scheduler.admit():
            device.computed[name] = 0
        assert scheduler.kv_bytes_reserved <= 400
        shares = scheduler.compose()
        assert len({share.id for share in shares}) == len(shares)
        for share in shares:
            device.run(share)
        scheduler.advance(shares)
        assert device.kv_bytes() <= 400
        for name in [n for n in alive if device.generated[n] >= device.tickets[n].max_tokens]:
            _forget(scheduler, device, alive, name)
        assert scheduler.num_running <= running
        assert scheduler.num_running + scheduler.num_waiting == len(alive)
        assert shares or not alive, "something waits but nothing runs"
        if turn >= 80 and not alive:
            break
    assert not alive, "every request comes to an end"


def _forget(scheduler: Scheduler, device: _Device, alive: set[str], name: str) -> None:
    scheduler.release(name)
    device.drop(name)
    alive.discard(name)
