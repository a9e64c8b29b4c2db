"""Who runs, who waits, who is refused: without a model, a thread or a clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import Priority
from app.engine.scheduler import Scheduler, Ticket
from app.errors import QueueFull


def _ticket(
    name: str, *, priority: Priority = Priority.INTERACTIVE, kv: int = 1, at: float | None = None
) -> Ticket:
    return Ticket(id=name, priority=priority, kv_bytes=kv, deadline=at)


def _scheduler(*, running: int = 2, queue: int = 3, kv: int = 100) -> Scheduler:
    return Scheduler(max_running=running, max_queue=queue, kv_bytes_limit=kv)


def test_interactive_requests_go_before_batch_ones() -> None:
    scheduler = _scheduler(running=1)
    scheduler.submit(_ticket("batch", priority=Priority.BATCH))
    scheduler.submit(_ticket("chat"))
    assert [ticket.id for ticket in scheduler.admit()] == ["chat"]
    scheduler.release("chat")
    assert [ticket.id for ticket in scheduler.admit()] == ["batch"]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    scheduler = _scheduler(queue=1)
    scheduler.submit(_ticket("first"))
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(_ticket("second"))
    assert caught.value.retry_after_seconds
    assert caught.value.retry_after_seconds >= 1


def test_the_estimate_follows_recent_service_times() -> None:
    scheduler = _scheduler(running=1)
    for idx in range(30):
        scheduler.submit(_ticket(str(idx)))
        scheduler.admit()
        scheduler.release(str(idx), service_seconds=20.0)
    assert scheduler.expected_wait_seconds() == pytest.approx(20.0, rel=0.05)


def test_memory_bounds_what_runs_and_nobody_is_passed() -> None:
    scheduler = _scheduler(running=4, kv=10)
    for name, kv in (("a", 6), ("b", 6), ("c", 1)):
        scheduler.submit(_ticket(name, kv=kv))
    assert [ticket.id for ticket in scheduler.admit()] == ["a"]
    scheduler.release("a")
    assert [ticket.id for ticket in scheduler.admit()] == ["b", "c"]


def test_deadlines_are_seen_waiting_and_running() -> None:
    scheduler = _scheduler(running=1)
    for name, at in (("runs", 5.0), ("waits", 3.0), ("patient", None)):
        scheduler.submit(_ticket(name, at=at))
    scheduler.admit()
    assert {ticket.id for ticket in scheduler.expired(4.0)} == {"waits"}
    assert {ticket.id for ticket in scheduler.expired(5.0)} == {"runs", "waits"}


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 6))
def test_no_request_is_lost_and_no_limit_is_passed(seed: int, running: int, queue: int) -> None:
    draw = random.Random(seed)
    scheduler = _scheduler(running=running, queue=queue, kv=50)
    known: set[str] = set()
    active: set[str] = set()
    for step in range(60):
        name = f"r{step}"
        try:
            lane = draw.choice(list(Priority))
            scheduler.submit(_ticket(name, priority=lane, kv=draw.randint(1, 50)))
            known.add(name)
        except QueueFull:
            assert scheduler.num_waiting == queue
        active |= {ticket.id for ticket in scheduler.admit()}
        if known and draw.random() < 0.6:
            gone = draw.choice(sorted(known))
            scheduler.release(gone)
            known.discard(gone)
            active.discard(gone)
        assert scheduler.num_running == len(active) <= running
        assert scheduler.num_running + scheduler.num_waiting == len(known)
        assert scheduler.kv_bytes_reserved <= 50
    while known:
        active |= {ticket.id for ticket in scheduler.admit()}
        assert active, "something waits but nothing can run"
        for name in active:
            scheduler.release(name)
        known -= active
        active = set()
    assert scheduler.num_running == scheduler.num_waiting == 0
