"""The queue in plain Python: what Redis must hold after any sequence of transitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from allrounder_service.jobs.records import NEXT_STATUS, BatchStatus

WINDOW = 3
NOW, LATER, LEASED = "now", "later", "leased"


@dataclass(kw_only=True)
class Line:
    id: str
    batch: Batch
    state: str = "queued"
    fence: int = 0
    crashes: int = 0
    solo_crashes: int = 0
    faults: int = 0
    owner: str = ""
    lane: str = ""
    lapsed: bool = False
    cancel: str = ""
    result: str | None = None
    published: int = 0


@dataclass(kw_only=True)
class Batch:
    id: str
    tenant: str
    total: int
    status: str = "validating"
    ending: str = ""
    fence: int = 0
    submitted: int = 0
    next: int = 0
    withheld: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    due: str = NOW
    is_over: bool = False
    swept: bool = False
    may_be_forgotten: bool = False
    lines: list[Line] = field(default_factory=list)

    def move(self, status: str) -> None:
        before, after = BatchStatus(self.status), BatchStatus(status)
        assert after is before or after in NEXT_STATUS[before], (before, after)
        self.status = status

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled", "expired")

    @property
    def remaining(self) -> int:
        if self.status == "failed":
            return 0
        return self.total - self.withheld - self.counts["good"] - self.counts["bad"]

    @property
    def failed(self) -> int:
        return self.withheld + self.counts["bad"]


class Model:
    """Lanes hold the lines that wait or run, in order of their entries."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.lines: dict[str, Line] = {}
        self.lanes: dict[str, list[Line]] = {"suspect": [], "retry": [], "batch": []}
        self.backlog: dict[str, list[Batch]] = {}
        self.solo = ""
        self.published: dict[str, tuple[str, str | None]] = {}
        self.num_dead = 0

    def create(self, id: str, tenant: str, total: int) -> None:
        self.batches.setdefault(id, Batch(id=id, tenant=tenant, total=total))

    def due(self) -> set[str]:
        return {batch.id for batch in self.batches.values() if batch.due == NOW}

    def lease_batch(self, id: str) -> int:
        batch = self.batches[id]
        batch.due, batch.fence = LEASED, batch.fence + 1
        return batch.fence

    def hand_back(self, id: str, fence: int) -> bool:
        if not (batch := self._leased(id, fence)):
            return False
        batch.due = NOW if self._needs_controller(batch) else LATER
        return True

    def renew_batch(self, id: str, fence: int) -> bool:
        if not (batch := self._leased(id, fence)):
            return False
        batch.due = LEASED
        return True

    def begin(self, id: str, fence: int, *, good: bool) -> bool:
        batch, target = self._leased(id, fence), "in_progress" if good else "failed"
        if not batch or batch.ending or batch.status not in ("validating", target):
            return False
        batch.move(target)
        return True

    def submit(self, id: str, fence: int, first: int, count: int) -> bool:
        batch = self._leased(id, fence)
        if not batch or batch.status != "in_progress" or batch.ending:
            return False
        last = first + count
        if first > batch.submitted or last > batch.total:
            return False
        if last > batch.submitted and batch.next == batch.submitted:
            self.backlog.setdefault(batch.tenant, []).append(batch)
        for idx in range(batch.submitted, last):
            line = Line(id=f"{id}/{idx}", batch=batch)
            batch.lines.append(line)
            self.lines[line.id] = line
        batch.submitted = max(batch.submitted, last)
        self._promote(batch.tenant)
        return True

    def claim(self, worker: str, want: int, running: int) -> list[Line]:
        held = self.solo == worker
        suspects = self._waiting("suspect")
        mine = [line for line in self.lanes["suspect"] if line.owner == worker]
        if running and mine:
            return []
        alone = False
        if want and suspects:
            self.solo = self.solo or worker
            alone = self.solo == worker
            if alone and running:
                return []
        elif held:
            self.solo = ""
        others = [*self._waiting("retry"), *self._waiting("batch")]
        taken = suspects[:1] if alone else others[:want]
        for line in taken:
            line.state, line.owner, line.lapsed = "running", worker, False
            line.fence += 1
        for tenant in dict.fromkeys(line.batch.tenant for line in taken):
            self._promote(tenant)
        return taken

    def heartbeat(self, leases: dict[str, int]) -> tuple[set[str], set[str]]:
        lost, stop = set(), set()
        for id, fence in leases.items():
            line = self._running(id, fence)
            if line is None:
                lost.add(id)
                continue
            line.lapsed = False
            if line.cancel:
                stop.add(id)
        return lost, stop

    def done(self, id: str, fence: int, state: str, text: str) -> bool:
        line = self._running(id, fence)
        if line is None:
            known = self.lines.get(id)
            return known is not None and known.fence == fence and known.result == text
        self._publish(line, line.cancel if state == "cancelled" and line.cancel else state, text)
        return True

    def release(self, id: str, fence: int, *, failed: bool) -> bool:
        line = self._running(id, fence)
        if line is None:
            known = self.lines.get(id)
            return known is not None and known.fence == fence and known.state == "queued"
        if line.cancel:
            self._publish(line, line.cancel, None)
        else:
            line.faults += failed
            is_suspect = line.lane == "suspect" or line.faults > 1
            self._requeue(line, "suspect" if is_suspect else "retry")
        return True

    def lapse(self, worker: str) -> None:
        for line in self._in_lanes():
            if line.owner == worker:
                line.lapsed = True

    def reap(self) -> int:
        taken = [line for line in self._in_lanes() if line.state == "running" and line.lapsed]
        for line in taken:
            if line.lane == "suspect" and self.solo == line.owner:
                self.solo = ""
            line.fence += 1
            line.crashes += 1
            line.solo_crashes += line.lane == "suspect"
            if line.cancel:
                self._publish(line, line.cancel, None)
            elif line.solo_crashes >= 2:
                self._publish(line, "failed", '{"code":"worker_lost"}')
                self.num_dead += 1
            else:
                self._requeue(line, "retry" if line.crashes < 2 else "suspect")
        return len(taken)

    def cancel(self, id: str, tenant: str) -> str | None:
        batch = self.batches.get(id)
        if batch is None or batch.tenant != tenant:
            return None
        if not batch.ending and batch.status in ("validating", "in_progress"):
            self._stop_submission(batch, "cancelled")
            batch.move("cancelling")
            batch.due = NOW
        return batch.status

    def expire(self, id: str, fence: int) -> bool:
        batch = self._leased(id, fence)
        if not batch or not batch.is_over:
            return False
        if batch.ending:
            return batch.ending == "expired"
        if batch.status not in ("validating", "in_progress"):
            return False
        self._stop_submission(batch, "expired")
        batch.move("in_progress")
        if not batch.remaining:
            self._lines_ended(batch)
        return True

    def withdraw(self, id: str, fence: int) -> bool:
        batch = self._leased(id, fence)
        if not batch or not batch.ending:
            return False
        for line in batch.lines:
            if line.state == "queued":
                self._publish(line, batch.ending, None)
            elif line.state == "running":
                line.cancel = batch.ending
        return True

    def finalize(self, id: str, fence: int) -> bool:
        batch = self._leased(id, fence)
        if not batch or batch.remaining:
            return False
        if batch.has_ended:
            return batch.status != "failed"
        if batch.status not in ("finalizing", "cancelling"):
            return False
        batch.move(batch.ending or "completed")
        return True

    def sweep(self, id: str, fence: int) -> int:
        batch = self._leased(id, fence)
        if not batch or not batch.has_ended:
            return -1
        batch.swept = True
        return 1

    def forget(self, id: str, fence: int) -> bool:
        batch = self._leased(id, fence)
        if not batch or not batch.swept or not batch.may_be_forgotten:
            return False
        del self.batches[id]
        return True

    def purge(self, id: str) -> bool:
        batch = self.batches[id]
        if batch.has_ended:
            batch.may_be_forgotten, batch.due = True, NOW
        return batch.has_ended

    def retire(self, worker: str) -> None:
        if self.solo == worker:
            self.solo = ""

    def _leased(self, id: str, fence: int) -> Batch | None:
        batch = self.batches.get(id)
        return batch if batch is not None and batch.fence == fence else None

    def _running(self, id: str, fence: int) -> Line | None:
        line = self.lines.get(id)
        return line if line and line.state == "running" and line.fence == fence else None

    def _waiting(self, lane: str) -> list[Line]:
        return [line for line in self.lanes[lane] if line.state == "queued"]

    def _in_lanes(self) -> Iterator[Line]:
        return iter([line for lane in self.lanes.values() for line in lane])

    def _needs_controller(self, batch: Batch) -> bool:
        match batch.status:
            case "validating" | "finalizing":
                return True
            case "in_progress" if not batch.ending:
                return batch.submitted < batch.total or batch.is_over
            # With a poll interval of 0, a batch that is being stopped is always due.
            case "cancelling" | "in_progress":
                return True
        return not batch.swept or batch.may_be_forgotten

    def _promote(self, tenant: str) -> None:
        backlog = self.backlog.get(tenant, [])
        held = sum(line.batch.tenant == tenant for line in self._waiting("batch"))
        while held < WINDOW and backlog:
            batch = backlog[0]
            line = batch.lines[batch.next]
            line.lane = "batch"
            self.lanes["batch"].append(line)
            batch.next += 1
            held += 1
            if batch.next == batch.submitted:
                backlog.pop(0)

    def _requeue(self, line: Line, lane: str) -> None:
        self.lanes[line.lane].remove(line)
        line.state, line.owner, line.lane, line.lapsed = "queued", "", lane, False
        self.lanes[lane].append(line)

    def _publish(self, line: Line, state: str, text: str | None) -> None:
        if line.lane:
            self.lanes[line.lane].remove(line)
        line.state, line.result, line.lane, line.owner = state, text, "", ""
        line.published += 1
        assert line.id not in self.published, "the model itself published twice"
        self.published[line.id] = state, text
        batch = line.batch
        batch.counts["good" if state == "done" else "bad"] += 1
        if not batch.remaining:
            self._lines_ended(batch)
        self._promote(batch.tenant)

    def _lines_ended(self, batch: Batch) -> None:
        if batch.status == "in_progress":
            batch.move("finalizing")
        batch.due = NOW

    def _stop_submission(self, batch: Batch, ending: str) -> None:
        batch.ending = ending
        batch.withheld = batch.total - batch.submitted
        backlog = self.backlog.get(batch.tenant, [])
        if batch in backlog:
            backlog.remove(batch)
