"""What goes into and comes out of the queue's transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.records import FileRecord, LineRef, LineResult
from allrounder_service.jobs.states import JobState


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """How many lines Redis may hold and a tenant may have waiting or running, and the times that
    decide over life and death.
    """

    max_lines: int = 150_000
    max_tenant_lines: int = 100_000
    window: int = keys.WINDOW
    lease_ms: int = keys.LEASE_MS
    retention_seconds: int = keys.RETENTION_SECONDS

    @property
    def solo_ms(self) -> int:
        return keys.SOLO_LEASES * self.lease_ms


class Admission(StrEnum):
    """How the door answered a new batch."""

    OK = "ok"
    SAME = "same"
    CONFLICT = "conflict"
    FULL = "full"
    TENANT_FULL = "tenant_full"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewBatch:
    """What a caller asks for; `idempotency_key` '' where he gave none."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    input_sha256: str
    lines: int
    completion_window: str
    window_seconds: int
    metadata: Mapping[str, str] | None = None
    keep_files_seconds: int | None = None
    idempotency_key: str = ""
    digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A line that this worker may execute; the fence says which execution it is.

    Attributes:
        is_alone: nothing else of the queue runs in this worker meanwhile.
    """

    job: str
    fence: int
    tenant: str
    ref: LineRef
    attempts: int
    is_alone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """Answer to a beat: leases that were lost, and lines whose batch was cancelled or expired."""

    lost: frozenset[str]
    stop: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tended:
    """A batch that this steward looks after until its lease ends."""

    batch: str
    fence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """A file that the end of a batch brings; `role` is the batch's field that names it."""

    role: str
    file: FileRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class LineEnd:
    """How a line ended; a state of None: it was never submitted."""

    state: JobState | None
    result: LineResult


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneCount:
    waiting: int
    running: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """What there is, counted in Redis itself. `backlog`: admitted lines that are in no lane yet."""

    lanes: Mapping[str, LaneCount]
    oldest_seconds: float
    lines: int
    backlog: int
    workers: int
    dead: int
    stats: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> Mapping[str, int]:
        """Lines by the lane they wait for, or will wait for."""
        found = {name: count.waiting for name, count in self.lanes.items()}
        return found | {keys.LANE_BATCH: found[keys.LANE_BATCH] + self.backlog}

    @property
    def running(self) -> int:
        return sum(count.running for count in self.lanes.values())
