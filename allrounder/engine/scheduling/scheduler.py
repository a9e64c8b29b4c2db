"""Who waits, who runs, who computes what in the next step. Pure Python: no torch, no threads.

One owner calls it; times are handed in as monotonic seconds. Between two steps the owner calls, in
this order, `expired`, `preempt`, `admit` and `compose`, and `advance` once the step is done.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from itertools import count, islice

from allrounder.core import Priority
from allrounder.engine.scheduling.tickets import Entry, Limits, Share, Ticket
from allrounder.errors import DeadlineExceeded, QueueFull

BATCH_SHARE = 10
MAX_PASSES = 4
COHORT_WINDOW = 16
MIN_CHUNK_ROWS = 64
# Who has just got an answer often asks again at once.
QUIET_STEPS = 16
_SMOOTHING = 0.2
_FIRST_GUESS_SECONDS = 1.0


class Scheduler:
    """A bounded queue in front of a running set that is bounded by slots and by KV bytes.

    Interactive requests go before batch ones, but one slot in ten, and one admission in ten, is
    for batch requests while any wait. Within a lane requests go in order of arrival, except that
    one which runs the same layers as those running may pass others, each at most `MAX_PASSES`
    times: layers that all share are read once per step. KV is reserved for the prompt and a few
    tokens, not for the longest answer; when it runs short the youngest request is preempted and
    computed anew later. The oldest one always goes on, so all come to an end.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lanes: dict[Priority, deque[Entry]] = {priority: deque() for priority in Priority}
        self._running: dict[str, Entry] = {}
        self._turns = count()
        self._admissions = count()
        self._interactive_in_a_row = 0
        self._quiet_steps = QUIET_STEPS
        self._is_short_of_kv = False
        self._service_seconds: float | None = None

    @property
    def num_waiting(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting_for_kv(self) -> int:
        """Interactive requests that wait although a slot was free when `admit` ended.

        The next in turn did not find its KV. Batch requests fill whatever there is: that they wait
        says nothing.
        """
        return len(self._lanes[Priority.INTERACTIVE]) if self._is_short_of_kv else 0

    @property
    def kv_bytes_reserved(self) -> int:
        return sum(entry.kv_reserved for entry in self._running.values())

    def check_room(self, priority: Priority) -> None:
        """Raise QueueFull, with an estimate of when to come back, if one more would not fit.

        Each lane has room of its own: neither kind of request can shut the other out.
        """
        num_waiting = len(self._lanes[priority])
        if num_waiting >= self._limits.max_queue:
            raise QueueFull(
                f"{num_waiting} requests are waiting, which is the limit",
                retry_after_seconds=max(self.expected_wait_seconds(), 1.0),
            )

    def submit(self, ticket: Ticket, now: float) -> None:
        """Queue a request. Raises QueueFull, or DeadlineExceeded where waiting is hopeless."""
        self.check_room(ticket.priority)
        if ticket.deadline is not None and now + self._certain_wait() >= ticket.deadline:
            raise DeadlineExceeded(
                "the deadline passes before this request could begin",
                retry_after_seconds=max(self.expected_wait_seconds(), 1.0),
            )
        self._lanes[ticket.priority].append(Entry(ticket=ticket, turn=next(self._turns)))

    def preempt(self) -> list[str]:
        """Move back to the queue whoever must give way; their KV has to be dropped now.

        The youngest running requests, batch ones first, until what is reserved fits; and batch
        requests beyond their share of slots, as many as interactive ones wait for a slot.
        """
        victims = []
        while self.kv_bytes_reserved > self._limits.kv_bytes and self.num_running > 1:
            victims.append(self._put_back(self._youngest(self._running.values())))
        free = self._limits.max_running - self.num_running
        wanted = len(self._lanes[Priority.INTERACTIVE]) - free
        batch = [entry for entry in self._running.values() if entry.is_batch]
        spare = len(batch) - max(self._batch_slots, 1) if free <= 0 else 0
        for _ in range(min(wanted, spare)):
            victim = self._youngest(batch)
            batch.remove(victim)
            victims.append(self._put_back(victim))
        return victims

    def admit(self) -> list[str]:
        """Move to the running set whoever may run now, in order."""
        admitted: list[str] = []
        num_encoded = 0
        while (entry := self._next()) is not None and self._fits(entry):
            num_encoded += 0 if entry.was_preempted else entry.ticket.demand.num_encoded
            if admitted and num_encoded > self._limits.max_encoded:
                break
            self._start(entry)
            admitted.append(entry.ticket.id)
        self._is_short_of_kv = entry is not None and self._has_slot and not self._fits(entry)
        return admitted

    def compose(self) -> list[Share]:
        """The next step: a row of every decoding request, and prompt rows while there is room.

        Where interactive requests run, or did a moment ago, as many batch ones go along as have
        slots of their own, and their prompts in small parts: a step that many share is slow for
        those who wait for it, or come while it runs.
        """
        entries = sorted(self._running.values(), key=lambda e: (e.is_batch, e.admitted))
        num_interactive = sum(not entry.is_batch for entry in entries)
        self._quiet_steps = 0 if num_interactive else self._quiet_steps + 1
        is_considerate = self._quiet_steps < QUIET_STEPS
        if is_considerate:
            entries = entries[: num_interactive + max(self._batch_slots, 1)]
        shares = [Share(id=e.ticket.id, num_rows=1) for e in entries if not e.num_pending]
        room = max(self._limits.max_step_rows - len(shares), 0)
        has_prompt = False
        for entry in entries:
            if entry.is_batch and is_considerate:
                room = min(room, MIN_CHUNK_ROWS)
            num_rows = self._prompt_rows(entry, room, is_first=not has_prompt)
            if num_rows:
                shares.append(Share(id=entry.ticket.id, num_rows=num_rows))
                room = max(room - num_rows, 0)
                has_prompt = True
        return shares

    def advance(self, shares: Iterable[Share]) -> None:
        """Those parts of a step have been computed."""
        for share in shares:
            entry = self._running.get(share.id)
            if entry is None:
                continue
            entry.num_pending = max(entry.num_pending - share.num_rows, 0)
            entry.num_generated += int(not entry.num_pending)

    def expired(self, now: float) -> list[Ticket]:
        """Every waiting or running request whose deadline has passed; they stay where they are."""
        waiting = (entry for lane in self._lanes.values() for entry in lane)
        tickets = (entry.ticket for entry in (*waiting, *self._running.values()))
        return [t for t in tickets if t.deadline is not None and t.deadline <= now]

    def release(self, request_id: str, *, service_seconds: float | None = None) -> None:
        """Forget a request, waiting or running; unknown ids are ignored.

        Args:
            service_seconds: from admission to end, where it ended by itself.
        """
        if self._running.pop(request_id, None) is None:
            for priority, lane in self._lanes.items():
                self._lanes[priority] = deque(e for e in lane if e.ticket.id != request_id)
        if service_seconds is not None:
            before = service_seconds if self._service_seconds is None else self._service_seconds
            self._service_seconds = before + _SMOOTHING * (service_seconds - before)

    def expected_wait_seconds(self) -> float:
        """Until a request that came now would be admitted, from recent service times."""
        if not self.num_waiting and self.num_running < self._limits.max_running:
            return 0.0
        each = _FIRST_GUESS_SECONDS if self._service_seconds is None else self._service_seconds
        return (self.num_waiting + 1) / max(self.num_running, 1) * each

    def _certain_wait(self) -> float:
        """What a refusal may rest on: nothing, before any request has been measured."""
        return 0.0 if self._service_seconds is None else self.expected_wait_seconds()

    @property
    def _batch_slots(self) -> int:
        """Slots that batch requests may hold against interactive ones: a tenth, rounded up."""
        return -(-self._limits.max_running // BATCH_SHARE) if self._limits.max_running > 1 else 0

    def _next(self) -> Entry | None:
        interactive, batch = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BATCH]
        if batch and (not interactive or self._batch_is_due()):
            return self._pick(batch)
        return self._pick(interactive) if interactive else None

    def _batch_is_due(self) -> bool:
        num_batch = sum(entry.is_batch for entry in self._running.values())
        free = self._limits.max_running - self.num_running
        owed = self._batch_slots - num_batch
        return 0 < free <= owed or self._interactive_in_a_row >= BATCH_SHARE - 1

    def _pick(self, lane: deque[Entry]) -> Entry:
        """The head of the lane, or a near one that runs the layers which most are running."""
        head = lane[0]
        cohorts = Counter[Hashable](e.ticket.demand.cohort for e in self._running.values())
        if head.was_preempted or head.passes >= MAX_PASSES or not cohorts:
            return head
        common = cohorts.most_common(1)[0][0]
        if head.ticket.demand.cohort == common:
            return head
        near = islice(lane, COHORT_WINDOW)
        alike = (entry for entry in near if entry.ticket.demand.cohort == common)
        return next((entry for entry in alike if self._fits(entry)), head)

    @property
    def _has_slot(self) -> bool:
        return self.num_running < self._limits.max_running

    def _fits(self, entry: Entry) -> bool:
        has_room = self.kv_bytes_reserved + entry.kv_reserved <= self._limits.kv_bytes
        return self._has_slot and has_room

    def _start(self, entry: Entry) -> None:
        lane = self._lanes[entry.ticket.priority]
        for passed in lane:
            if passed is entry:
                break
            passed.passes += 1
        lane.remove(entry)
        entry.num_pending = entry.ticket.demand.num_rows + entry.num_generated
        entry.admitted = next(self._admissions)
        self._running[entry.ticket.id] = entry
        self._interactive_in_a_row = 0 if entry.is_batch else self._interactive_in_a_row + 1

    def _put_back(self, entry: Entry) -> str:
        """To the front of its lane, behind others that were preempted and are older."""
        del self._running[entry.ticket.id]
        entry.was_preempted = True
        lane = self._lanes[entry.ticket.priority]
        place = sum(other.was_preempted and other.turn < entry.turn for other in lane)
        lane.insert(place, entry)
        return entry.ticket.id

    def _youngest(self, entries: Iterable[Entry]) -> Entry:
        return max(entries, key=lambda entry: (entry.is_batch, entry.turn))

    def _prompt_rows(self, entry: Entry, room: int, *, is_first: bool) -> int:
        """How many prompt rows of a request go into a step with `room` left; 0 for none."""
        pending = entry.num_pending
        if pending <= room:
            return pending
        if not entry.ticket.demand.splittable:
            return pending if is_first else 0
        if room < MIN_CHUNK_ROWS:
            return min(pending, MIN_CHUNK_ROWS) if is_first else 0
        return room
