"""Callers who wait hardly notice a backlog of batch jobs, and the backlog still moves (R-21).

The scheduler alone, on a clock that counts what each step would cost: a busy machine changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from allrounder.core import Priority
from allrounder.engine.scheduling.request import EngineRequest, SchedulerLimits
from allrounder.engine.scheduling.scheduler import Scheduler
from tests.engine.queueing import compute, queued

SLOTS = 16
PROMPT_ROWS = 110
ANSWER_TOKENS = 12


@dataclass(frozen=True)
class Price:
    """What a step costs in milliseconds, and each row in it."""

    step: float
    row: float


# The embedded model on a core, where rows decide; a GPU, which reads its weights for any number.
CORE = Price(step=6.0, row=0.3)
GPU = Price(step=20.0, row=0.02)


@dataclass
class Load:
    """Callers who ask again as soon as they are answered, some of each kind."""

    price: Price
    num_clients: int
    num_backlog: int
    scheduler: Scheduler = field(init=False)
    clock_ms: float = 0.0
    asked: int = 0
    begun: dict[str, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    batch_shares: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            SchedulerLimits(max_running=SLOTS, max_queue=256, kv_bytes=2**40, max_step_rows=2048)
        )
        for _ in range(self.num_clients):
            self.ask(Priority.INTERACTIVE)
        for _ in range(self.num_backlog):
            self.ask(Priority.BATCH)

    def ask(self, priority: Priority) -> None:
        name = f"{priority}-{self.asked}"
        self.asked += 1
        request = queued(name, priority=priority, rows=PROMPT_ROWS, tokens=ANSWER_TOKENS)
        self.scheduler.submit(request, self.clock_ms / 1000)
        self.begun[name] = self.clock_ms

    def step(self) -> None:
        for request in self.scheduler.preempt():
            request.restart()
        self.scheduler.admit()
        step = self.scheduler.compose()
        rows = sum(each.num_rows for each in step)
        self.clock_ms += self.price.step + self.price.row * rows
        self.num_steps += 1
        compute(step)
        for each in step:
            self.batch_shares += each.request.is_batch
            if each.request.num_generated == ANSWER_TOKENS:
                self.end(each.request)

    def end(self, request: EngineRequest) -> None:
        latency = self.clock_ms - self.begun.pop(request.id)
        self.scheduler.release(request.id, service_seconds=latency / 1000)
        if not request.is_batch:
            self.latencies.append(latency)
        self.ask(request.request.priority)

    def run(self, num_answers: int) -> float:
        """99th percentile of the latencies, in milliseconds, once all is in its stride."""
        while len(self.latencies) < num_answers:
            self.step()
        return float(np.percentile(self.latencies[num_answers // 5 :], 99))


@pytest.mark.parametrize(
    ("price", "num_clients", "limit"),
    [
        *((GPU, num_clients, 1.2) for num_clients in (2, 4, 8, 12, 24)),
        (CORE, 8, 1.2),
        (CORE, 24, 1.2),
        # As many callers as slots: some have to wait for those that batch requests hold.
        (GPU, 16, 1.4),
        (CORE, 16, 1.4),
        # Where rows are what costs, two rows more beside two are half as much again.
        (CORE, 2, 1.6),
    ],
)
def test_r21_a_backlog_hardly_slows_those_who_wait_and_still_moves(
    price: Price, num_clients: int, limit: float, long_form: bool
) -> None:
    num_answers = 20_000 if long_form else 2000
    alone = Load(price, num_clients, 0).run(num_answers)
    load = Load(price, num_clients, 4 * SLOTS)
    slower = load.run(num_answers) / alone
    batch_share = load.batch_shares / load.num_steps
    print(f"R-21 {price} clients={num_clients} p99 x{slower:.2f} batch rows {batch_share:.2f}")
    assert slower <= limit
    assert batch_share >= SLOTS / 10
