"""The queue of batch lines over one Redis: each transition is one Lua script and one method.

Transitions are atomic, run on the server's clock and are safe to repeat: a call whose reply was
lost may be made again. Execution is at least once, publication at most once: every execution has a
fencing token, and only the latest one publishes. Errors of redis-py pass through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.records import (
    BatchRecord,
    BatchStatus,
    FileRecord,
    JobRecord,
    JobState,
    LineError,
    LineRef,
    LineResult,
    TokenUsage,
    batch_from_hash,
    job_from_hash,
)
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import (
    Page,
    PageRequest,
    read_fields,
    read_hash,
    read_hashes,
    read_page,
)

CHUNK_LINES = 500
# `flags=allow-oom` in a script: it must run with Redis full, since it frees memory or ends a line.
# Their commands are those that Redis >= 7.0 and Valkey >= 7.2 share.
SCRIPTS = (
    "add_file",
    "begin",
    "cancel",
    "census",
    "claim",
    "create",
    "done",
    "drop_file",
    "expire",
    "expire_files",
    "finalize",
    "forget",
    "heartbeat",
    "lease_batch",
    "prepare",
    "purge",
    "reap",
    "release",
    "renew_batch",
    "retire",
    "submit",
    "sweep",
    "withdraw",
)


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Limits of admission control, and the lease and retention times.

    Attributes:
        max_lines: lines that Redis may hold.
        max_tenant_lines: lines of one tenant that may wait or run.
        window: lines of one tenant that may wait in the lane of new lines.
        lease_ms: visibility timeout of a claimed line and of a batch with its controller.
    """

    max_lines: int = 150_000
    max_tenant_lines: int = 100_000
    window: int = keys.WINDOW
    lease_ms: int = keys.LEASE_MS
    retention_seconds: int = keys.RETENTION_SECONDS

    @property
    def solo_ms(self) -> int:
        """The lease on running suspect lines alone."""
        return keys.SOLO_LEASES * self.lease_ms


class Admission(StrEnum):
    """Decision of admission control on a new batch."""

    OK = "ok"
    SAME = "same"
    CONFLICT = "conflict"
    FULL = "full"
    TENANT_FULL = "tenant_full"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewBatch:
    """A batch to be admitted; `idempotency_key` '' where the caller gave none."""

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
    """A line that this worker may execute while it holds the lease.

    Attributes:
        fence: fencing token of this execution; a newer one makes its result stale.
        is_alone: a suspect line: this worker runs no other line of the queue beside it.
    """

    job: str
    fence: int
    tenant: str
    ref: LineRef
    attempts: int
    is_alone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HeartbeatReply:
    """Leases that were lost, and lines to stop because their batch was cancelled or expired."""

    lost: frozenset[str]
    stop: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLease:
    """The lease of one batch controller on a batch; `fence` is its fencing token."""

    batch: str
    fence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """A file that ends with a batch; `role` is the field of the batch that names it."""

    role: str
    file: FileRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class LineEnd:
    """How a line ended; `state` is None if it was never submitted."""

    state: JobState | None
    result: LineResult


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneCount:
    waiting: int
    running: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """Counts of the queue, taken in Redis. `backlog`: admitted lines that are in no lane yet."""

    lanes: Mapping[str, LaneCount]
    oldest_seconds: float
    lines: int
    backlog: int
    workers: int
    dead: int
    stats: Mapping[str, int] = field(default_factory=dict)

    @property
    def waiting(self) -> Mapping[str, int]:
        """Waiting lines by lane, the backlog included in the lane of new lines."""
        found = {name: count.waiting for name, count in self.lanes.items()}
        return found | {keys.LANE_BATCH: found[keys.LANE_BATCH] + self.backlog}

    @property
    def running(self) -> int:
        return sum(count.running for count in self.lanes.values())


class Queue:
    """Transitions over a client that decodes replies to text.

    Args:
        sources: scripts to run, by name; tests pass mutants.
    """

    def __init__(
        self, client: Redis, limits: QueueLimits, *, sources: Mapping[str, str] | None = None
    ) -> None:
        self.client = client
        self.limits = limits
        found = load_sources() if sources is None else sources
        self._scripts = {name: client.register_script(text) for name, text in found.items()}

    async def prepare(self, *, start: str = "0") -> None:
        """Create the consumer groups of the lanes; they read entries that are already there too."""
        await self._run("prepare", start)

    async def create(self, new: NewBatch) -> tuple[Admission, str]:
        """Admission control -> the decision, and the batch's id or the number of lines held."""
        fields: dict[str, str] = {
            "endpoint": new.endpoint,
            "input_file_id": new.input_file_id,
            "completion_window": new.completion_window,
            "metadata": json.dumps(new.metadata),
        }
        if new.keep_files_seconds is not None:
            fields["keep_files_seconds"] = str(new.keep_files_seconds)
        how, what = await self._run(
            "create",
            new.id,
            new.tenant,
            new.lines,
            self.limits.max_lines,
            self.limits.max_tenant_lines,
            new.idempotency_key,
            new.digest,
            keys.IDEMPOTENCY_SECONDS,
            new.window_seconds * 1000,
            self.limits.retention_seconds * 1000,
            new.input_sha256,
            *_flat(fields),
        )
        return Admission(how), what

    async def claim(self, worker: str, wanted: int, *, running: int) -> list[Claim]:
        """Lease at most `wanted` lines; `running` are those that this worker holds already."""
        limits = self.limits
        rows = await self._run("claim", worker, wanted, running, limits.solo_ms, limits.window)
        return [
            Claim(
                job=job,
                fence=int(fence),
                tenant=tenant,
                ref=LineRef.model_validate_json(ref),
                attempts=int(attempts),
                is_alone=bool(alone),
            )
            for job, fence, tenant, ref, attempts, alone in rows
        ]

    async def heartbeat(self, worker: str, leases: Mapping[str, int]) -> HeartbeatReply:
        """Renew the leases of this worker on these jobs, given with their fencing tokens."""
        lost, stop = await self._run("heartbeat", worker, self.limits.solo_ms, *_flat(leases))
        return HeartbeatReply(lost=frozenset(lost), stop=frozenset(stop))

    async def done(self, job: str, fence: int, state: JobState, result: LineResult) -> bool:
        """Publish; False where the fencing token is stale and the result must be discarded."""
        good = state is JobState.DONE
        text = result.model_dump_json(exclude_defaults=True)
        found = await self._run("done", job, fence, state, text, int(good), self.limits.window)
        return bool(found)

    async def release(self, job: str, fence: int, *, failed: bool = False) -> bool:
        """Return the line for a retry; one that `failed` beside others twice runs alone next."""
        return bool(await self._run("release", job, fence, self.limits.window, int(failed)))

    async def retire(self, worker: str) -> None:
        """The worker claims no more lines; another may run suspect lines at once."""
        await self._run("retire", worker)

    async def reap(self) -> int:
        """Reclaim lines whose lease has expired -> number of lines."""
        limits = self.limits
        found = await self._run(
            "reap", limits.lease_ms, keys.MAX_SOLO_CRASHES, limits.window, keys.CONSUMER_IDLE_MS
        )
        return int(found)

    async def lease_batch(self) -> BatchLease | None:
        """Lease the batch that has been due longest; None: none is due."""
        found = await self._run("lease_batch", self.limits.lease_ms)
        return BatchLease(batch=found[0], fence=int(found[1])) if found else None

    async def renew_batch(self, lease: BatchLease) -> bool:
        """Renew the lease; False: another controller has leased the batch."""
        return bool(
            await self._run("renew_batch", lease.batch, lease.fence, self.limits.lease_ms, 0)
        )

    async def hand_back(self, lease: BatchLease, *, poll_seconds: float = 1.0) -> bool:
        """End the lease; a batch that waits for running lines is due again in `poll_seconds`."""
        poll_ms = int(poll_seconds * 1000)
        return bool(await self._run("renew_batch", lease.batch, lease.fence, 0, poll_ms))

    async def begin(self, lease: BatchLease, errors: Sequence[LineError] = ()) -> bool:
        """End the validation: the batch starts, or fails with these errors."""
        listed = [each.model_dump(exclude_none=True) for each in errors]
        text = json.dumps(listed) if listed else ""
        return bool(await self._run("begin", lease.batch, lease.fence, text))

    async def submit(self, lease: BatchLease, first: int, refs: Iterable[LineRef]) -> bool:
        """Submit lines `first`, `first` + 1, ..., at most CHUNK_LINES of them.

        False also where they would leave a gap or exceed the batch.
        """
        texts = [ref.model_dump_json() for ref in refs]
        assert len(texts) <= CHUNK_LINES, "a script blocks the server, so it must be short"
        return bool(
            await self._run("submit", lease.batch, lease.fence, self.limits.window, first, *texts)
        )

    async def cancel(self, batch: str, tenant: str) -> BatchStatus | None:
        """None where the tenant has no such batch."""
        status = await self._run("cancel", batch, tenant)
        return BatchStatus(status) if status else None

    async def expire(self, lease: BatchLease) -> bool:
        return bool(await self._run("expire", lease.batch, lease.fence))

    async def withdraw(self, lease: BatchLease, first: int) -> bool:
        """End up to CHUNK_LINES waiting lines from `first` on; mark running ones to be stopped."""
        args = (lease.batch, lease.fence, first, CHUNK_LINES, self.limits.window)
        return int(await self._run("withdraw", *args)) >= 0

    async def finalize(
        self, lease: BatchLease, files: Sequence[NewFile], usage: TokenUsage
    ) -> bool:
        """End the batch with these files, whose bytes are on the volume."""
        record = await self.batch(lease.batch)
        keep = (record and record.keep_files_seconds) or self.limits.retention_seconds
        named = [
            value
            for new in files
            for value in (
                new.role,
                new.file.id,
                new.file.filename,
                new.file.bytes,
                new.file.sha256,
                new.file.lines,
            )
        ]
        args = (lease.batch, lease.fence, keep, usage.model_dump_json(), *named)
        return bool(await self._run("finalize", *args))

    async def sweep(self, lease: BatchLease, first: int) -> int:
        """Let the jobs of an ended batch expire -> 1: all do, 0: more are left, -1: lease lost."""
        args = (lease.batch, lease.fence, first, CHUNK_LINES, keys.ENDED_JOB_SECONDS)
        return int(await self._run("sweep", *args))

    async def forget(self, lease: BatchLease) -> bool:
        """Delete the record of a batch whose retention is over."""
        return bool(await self._run("forget", lease.batch, lease.fence))

    async def purge(self, batch: str) -> bool:
        """Make an ended batch due for deletion at once; False where no such batch has ended."""
        return bool(await self._run("purge", batch))

    async def batch(self, id: str) -> BatchRecord | None:
        fields = await read_hash(self.client, key("batch", id))
        return batch_from_hash(id, fields) if fields else None

    async def page(self, tenant: str, wanted: PageRequest) -> Page[BatchRecord]:
        """Raises UnknownCursor."""
        return await read_page(self.client, key("batches", tenant), wanted, self._read_batches)

    async def find_by_idempotency_key(
        self, tenant: str, idempotency_key: str
    ) -> tuple[str, str] | None:
        """The batch created with this key and the digest of its request."""
        found = await read_hash(self.client, key("idem", tenant, idempotency_key))
        return (found["id"], found["digest"]) if found else None

    async def job(self, id: str) -> JobRecord | None:
        fields = await read_hash(self.client, key("job", id))
        return job_from_hash(id, fields) if fields else None

    async def line_ends(self, batch: str, first: int, count: int) -> list[LineEnd]:
        """How lines `first`, `first` + 1, ... ended."""
        names = [key("job", f"{batch}/{idx}") for idx in range(first, first + count)]
        rows = await read_fields(self.client, names, ("state", "result"))
        return [
            LineEnd(
                state=JobState(state) if state else None,
                result=LineResult.model_validate_json(result) if result else LineResult(),
            )
            for state, result in rows
        ]

    async def census(self) -> Census:
        found = await self._run("census", self.limits.lease_ms)
        lanes, oldest_ms, lines, backlog, workers, dead, stats = found
        return Census(
            lanes={name: LaneCount(waiting=wait, running=run) for name, wait, run in lanes},
            oldest_seconds=int(oldest_ms) / 1000,
            lines=int(lines),
            backlog=int(backlog),
            workers=int(workers),
            dead=int(dead),
            stats={stats[i]: int(stats[i + 1]) for i in range(0, len(stats), 2)},
        )

    async def _read_batches(self, ids: Sequence[str]) -> Sequence[BatchRecord | None]:
        rows = await read_hashes(self.client, [key("batch", id) for id in ids])
        return [batch_from_hash(*pair) if pair[1] else None for pair in zip(ids, rows, strict=True)]

    async def _run(self, name: str, *args: object) -> Any:
        texts = [str(arg) for arg in args]
        # One key tells a cluster which node holds them all.
        return await self._scripts[name](keys=[key(keys.DUE)], args=texts)


def load_sources() -> Mapping[str, str]:
    """Source of every script by name, the shared part included."""
    folder = files("allrounder_service.jobs.scripts")
    common = (folder / "common.lua").read_text()
    return {name: _join(common, (folder / f"{name}.lua").read_text()) for name in SCRIPTS}


def _join(common: str, script: str) -> str:
    """The first line holds the flags of the script for Redis, so it stays first."""
    shebang, _, body = script.partition("\n")
    return f"{shebang}\n{common}\n{body}"


def _flat(fields: Mapping[str, object]) -> list[object]:
    return [value for pair in fields.items() for value in pair]
