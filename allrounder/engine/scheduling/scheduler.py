"""Who waits, who runs, who computes what in the next step. Pure Python: no torch, no threads.

One owner calls it; times are handed in as monotonic seconds. Between two steps the owner calls, in
this order, `expired`, `preempt`, `admit` and `compose`; the runner books in the requests what the
step computed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from itertools import count, islice

from allrounder.core import Priority
from allrounder.engine.scheduling.request import EngineRequest, ScheduledRows, SchedulerLimits
from allrounder.errors import DeadlineExceeded, QueueFull

BATCH_SHARE = 10
MAX_PASSES = 4
SIGNATURE_WINDOW = 16
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

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits
        self._lanes: dict[Priority, deque[EngineRequest]] = {
            priority: deque() for priority in Priority
        }
        self._running: dict[str, EngineRequest] = {}
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

    def submit(self, request: EngineRequest, now: float) -> None:
        """Queue a request. Raises QueueFull, or DeadlineExceeded where waiting is hopeless."""
        priority = request.request.priority
        self.check_room(priority)
        if request.deadline is not None and now + self._certain_wait() >= request.deadline:
            raise DeadlineExceeded(
                "the deadline passes before this request could begin",
                retry_after_seconds=max(self.expected_wait_seconds(), 1.0),
            )
        request.turn = next(self._turns)
        self._lanes[priority].append(request)

    def preempt(self) -> list[EngineRequest]:
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

    def admit(self) -> list[EngineRequest]:
        """Move to the running set whoever may run now, in order."""
        admitted: list[EngineRequest] = []
        num_encoded = 0
        while (entry := self._next()) is not None and self._fits(entry):
            num_encoded += 0 if entry.was_preempted else entry.demand.num_encoded
            if admitted and num_encoded > self._limits.max_encoded:
                break
            self._start(entry)
            admitted.append(entry)
        self._is_short_of_kv = entry is not None and self._has_slot and not self._fits(entry)
        return admitted

    def compose(self) -> list[ScheduledRows]:
        """The next step: a row of every decoding request, and prompt rows while there is room.

        Where interactive requests run, or did a moment ago, as many batch ones go along as have
        slots of their own, and their prompts in small parts: a step that many share is slow for
        those who wait for it, or come while it runs.
        """
        entries = sorted(self._running.values(), key=lambda e: (e.is_batch, e.admission))
        num_interactive = sum(not entry.is_batch for entry in entries)
        self._quiet_steps = 0 if num_interactive else self._quiet_steps + 1
        is_considerate = self._quiet_steps < QUIET_STEPS
        if is_considerate:
            entries = entries[: num_interactive + max(self._batch_slots, 1)]
        step = [ScheduledRows(request=e, num_rows=1) for e in entries if not e.num_pending]
        room = max(self._limits.max_step_rows - len(step), 0)
        has_prompt = False
        for entry in entries:
            if entry.is_batch and is_considerate:
                room = min(room, MIN_CHUNK_ROWS)
            num_rows = self._prompt_rows(entry, room, is_first=not has_prompt)
            if num_rows:
                step.append(ScheduledRows(request=entry, num_rows=num_rows))
                room = max(room - num_rows, 0)
                has_prompt = True
        return step

    def expired(self, now: float) -> list[EngineRequest]:
        """Every waiting or running request whose deadline has passed; they stay where they are."""
        waiting = (entry for lane in self._lanes.values() for entry in lane)
        return [
            entry
            for entry in (*waiting, *self._running.values())
            if entry.deadline is not None and entry.deadline <= now
        ]

    def release(self, request_id: str, *, service_seconds: float | None = None) -> None:
        """Forget a request, waiting or running; unknown ids are ignored.

        Args:
            service_seconds: from admission to end, where it ended by itself.
        """
        if self._running.pop(request_id, None) is None:
            for priority, lane in self._lanes.items():
                self._lanes[priority] = deque(e for e in lane if e.id != request_id)
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

    def _next(self) -> EngineRequest | None:
        interactive, batch = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BATCH]
        if batch and (not interactive or self._batch_is_due()):
            return self._pick(batch)
        return self._pick(interactive) if interactive else None

    def _batch_is_due(self) -> bool:
        num_batch = sum(entry.is_batch for entry in self._running.values())
        free = self._limits.max_running - self.num_running
        owed = self._batch_slots - num_batch
        return 0 < free <= owed or self._interactive_in_a_row >= BATCH_SHARE - 1

    def _pick(self, lane: deque[EngineRequest]) -> EngineRequest:
        """The head of the lane, or a near one that runs the layers which most are running."""
        head = lane[0]
        signatures = Counter[Hashable](e.demand.layer_signature for e in self._running.values())
        if head.was_preempted or head.passes >= MAX_PASSES or not signatures:
            return head
        common = signatures.most_common(1)[0][0]
        if head.demand.layer_signature == common:
            return head
        near = islice(lane, SIGNATURE_WINDOW)
        alike = (entry for entry in near if entry.demand.layer_signature == common)
        return next((entry for entry in alike if self._fits(entry)), head)

    @property
    def _has_slot(self) -> bool:
        return self.num_running < self._limits.max_running

    def _fits(self, entry: EngineRequest) -> bool:
        has_room = self.kv_bytes_reserved + entry.kv_reserved <= self._limits.kv_bytes
        return self._has_slot and has_room

    def _start(self, entry: EngineRequest) -> None:
        lane = self._lanes[entry.request.priority]
        for passed in lane:
            if passed is entry:
                break
            passed.passes += 1
        lane.remove(entry)
        entry.admission = next(self._admissions)
        self._running[entry.id] = entry
        self._interactive_in_a_row = 0 if entry.is_batch else self._interactive_in_a_row + 1

    def _put_back(self, entry: EngineRequest) -> EngineRequest:
        """To the front of its lane, behind others that were preempted and are older."""
        del self._running[entry.id]
        entry.was_preempted = True
        lane = self._lanes[entry.request.priority]
        place = sum(other.was_preempted and other.turn < entry.turn for other in lane)
        lane.insert(place, entry)
        return entry

    def _youngest(self, entries: Iterable[EngineRequest]) -> EngineRequest:
        return max(entries, key=lambda entry: (entry.is_batch, entry.turn))

    def _prompt_rows(self, entry: EngineRequest, room: int, *, is_first: bool) -> int:
        """How many prompt rows of a request go into a step with `room` left; 0 for none."""
        pending = entry.num_pending
        if pending <= room:
            return pending
        if not entry.demand.splittable:
            return pending if is_first else 0
        if room < MIN_CHUNK_ROWS:
            return min(pending, MIN_CHUNK_ROWS) if is_first else 0
        return room
