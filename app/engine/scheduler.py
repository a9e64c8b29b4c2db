"""Who waits, who runs, who is refused. Pure Python: no torch, no threads, no clock of its own.

One owner calls it; times are handed in as monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from app.core import Priority
from app.errors import QueueFull

_SMOOTHING = 0.2
_FIRST_GUESS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """What the scheduler knows of a request.

    Attributes:
        kv_bytes: most KV it can come to hold; reserved from admission to release.
        deadline: monotonic seconds, or None.
    """

    id: str
    priority: Priority
    kv_bytes: int
    deadline: float | None = None


class Scheduler:
    """A bounded queue in front of a bounded running set.

    Interactive requests go before batch ones, each in order of arrival. A request runs when a slot
    is free and its KV bound fits beside those of the others; the head of the queue is never passed
    by a smaller one, so nothing starves.
    """

    def __init__(self, *, max_running: int, max_queue: int, kv_bytes_limit: int) -> None:
        self._max_running = max_running
        self._max_queue = max_queue
        self._kv_bytes_limit = kv_bytes_limit
        self._lanes: dict[Priority, deque[Ticket]] = {p: deque() for p in Priority}
        self._running: dict[str, Ticket] = {}
        self._service_seconds = _FIRST_GUESS_SECONDS

    @property
    def num_waiting(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_bytes_reserved(self) -> int:
        return sum(ticket.kv_bytes for ticket in self._running.values())

    def check_room(self) -> None:
        """Raise QueueFull, with an estimate of when to come back, if one more would not fit."""
        if self.num_waiting >= self._max_queue:
            raise QueueFull(
                f"{self.num_waiting} requests are waiting, which is the limit",
                retry_after_seconds=self.expected_wait_seconds(),
            )

    def submit(self, ticket: Ticket) -> None:
        self.check_room()
        self._lanes[ticket.priority].append(ticket)

    def admit(self) -> list[Ticket]:
        """Move to the running set whoever may run now, in order."""
        admitted = []
        while (ticket := self._head()) is not None and self._fits(ticket):
            self._lanes[ticket.priority].popleft()
            self._running[ticket.id] = ticket
            admitted.append(ticket)
        return admitted

    def expired(self, now: float) -> list[Ticket]:
        """Every waiting or running request whose deadline has passed; they stay where they are."""
        waiting = (ticket for lane in self._lanes.values() for ticket in lane)
        everyone = (*waiting, *self._running.values())
        return [t for t in everyone if t.deadline is not None and t.deadline <= now]

    def release(self, request_id: str, *, service_seconds: float | None = None) -> None:
        """Forget a request, waiting or running; unknown ids are ignored.

        Args:
            service_seconds: from admission to end, where it ended by itself.
        """
        if self._running.pop(request_id, None) is None:
            for priority, lane in self._lanes.items():
                self._lanes[priority] = deque(t for t in lane if t.id != request_id)
        if service_seconds is not None:
            self._service_seconds += _SMOOTHING * (service_seconds - self._service_seconds)

    def expected_wait_seconds(self) -> float:
        """Until a request that came now would be admitted, from recent service times."""
        rounds = (self.num_waiting + 1) / self._max_running
        return max(rounds * self._service_seconds, 1.0)

    def _head(self) -> Ticket | None:
        return next((lane[0] for lane in self._lanes.values() if lane), None)

    def _fits(self, ticket: Ticket) -> bool:
        has_slot = self.num_running < self._max_running
        return has_slot and self.kv_bytes_reserved + ticket.kv_bytes <= self._kv_bytes_limit
