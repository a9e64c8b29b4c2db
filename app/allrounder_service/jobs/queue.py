"""The transitions of batch jobs over one Redis, one method each.

Every method is one script, atomic and repeat-safe: a call whose reply was lost may be made again.
Errors of redis-py pass through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.codec import batch_from_hash, job_from_hash
from allrounder_service.jobs.lua import load_sources
from allrounder_service.jobs.pages import Page, PageRequest, read_page
from allrounder_service.jobs.records import (
    BatchRecord,
    BatchUsage,
    JobRecord,
    LineError,
    LineRef,
    LineResult,
)
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.replies import read_fields, read_hash, read_hashes
from allrounder_service.jobs.states import BatchStatus, JobState
from allrounder_service.jobs.transitions import (
    Admission,
    Beat,
    Census,
    Claim,
    LaneCount,
    LineEnd,
    NewBatch,
    NewFile,
    QueueLimits,
    Tended,
)

CHUNK_LINES = 500


class Queue:
    """Transitions over a client that decodes replies to text.

    Args:
        sources: scripts to run, by name; the tests bring broken ones.
    """

    def __init__(
        self, client: Redis, limits: QueueLimits, *, sources: Mapping[str, str] | None = None
    ) -> None:
        self.client = client
        self.limits = limits
        found = load_sources() if sources is None else sources
        self._scripts = {name: client.register_script(text) for name, text in found.items()}

    async def prepare(self, *, start: str = "0") -> None:
        """Make the lanes' consumer groups. They read from the beginning: work may be older."""
        await self._run("prepare", start)

    async def create(self, new: NewBatch) -> tuple[Admission, str]:
        """Admit a batch -> how, and the id of the batch or the number of lines in the way."""
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
        """At most so many lines; `running` are those this worker holds already."""
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

    async def beat(self, worker: str, leases: Mapping[str, int]) -> Beat:
        lost, stop = await self._run("beat", worker, self.limits.solo_ms, *_flat(leases))
        return Beat(lost=frozenset(lost), stop=frozenset(stop))

    async def done(self, job: str, fence: int, state: JobState, result: LineResult) -> bool:
        """Publish; False where the execution is stale and its result must be thrown away."""
        good = state is JobState.DONE
        text = result.model_dump_json(exclude_defaults=True)
        found = await self._run("done", job, fence, state, text, int(good), self.limits.window)
        return bool(found)

    async def release(self, job: str, fence: int, *, failed: bool = False) -> bool:
        """Hand it back; what `failed` beside others twice is handed out alone."""
        return bool(await self._run("release", job, fence, self.limits.window, int(failed)))

    async def retire(self, worker: str) -> None:
        """The worker claims no more; its turn at suspect lines goes to another at once."""
        await self._run("retire", worker)

    async def reap(self) -> int:
        """Take back what nobody beats for any more -> number of lines."""
        limits = self.limits
        found = await self._run(
            "reap", limits.lease_ms, keys.MAX_SOLO_CRASHES, limits.window, keys.CONSUMER_IDLE_MS
        )
        return int(found)

    async def tend(self) -> Tended | None:
        """The batch that needs a steward most, with a lease on it."""
        found = await self._run("tend", self.limits.lease_ms)
        return Tended(batch=found[0], fence=int(found[1])) if found else None

    async def keep(self, tended: Tended) -> bool:
        """Renew the lease; False: another steward has the batch."""
        return bool(await self._run("keep", tended.batch, tended.fence, self.limits.lease_ms, 0))

    async def leave(self, tended: Tended, *, poll_seconds: float = 1.0) -> bool:
        """Hand the batch back until it needs a steward again."""
        poll_ms = int(poll_seconds * 1000)
        return bool(await self._run("keep", tended.batch, tended.fence, 0, poll_ms))

    async def begin(self, tended: Tended, errors: Sequence[LineError] = ()) -> bool:
        """The end of validation: the batch goes on, or fails with these errors."""
        listed = [each.model_dump(exclude_none=True) for each in errors]
        text = json.dumps(listed) if listed else ""
        return bool(await self._run("begin", tended.batch, tended.fence, text))

    async def submit(self, tended: Tended, first: int, refs: Iterable[LineRef]) -> bool:
        """Put in lines `first`, `first` + 1, ... at most CHUNK_LINES of them.

        False also where they would leave a gap or exceed the batch.
        """
        texts = [ref.model_dump_json() for ref in refs]
        assert len(texts) <= CHUNK_LINES, "a script must not keep others waiting"
        return bool(
            await self._run("submit", tended.batch, tended.fence, self.limits.window, first, *texts)
        )

    async def cancel(self, batch: str, tenant: str) -> BatchStatus | None:
        """None where the tenant has no such batch."""
        status = await self._run("cancel", batch, tenant)
        return BatchStatus(status) if status else None

    async def expire(self, tended: Tended) -> bool:
        return bool(await self._run("expire", tended.batch, tended.fence))

    async def withdraw(self, tended: Tended, first: int) -> bool:
        """End up to CHUNK_LINES waiting lines from `first` on; ask running ones to stop."""
        args = (tended.batch, tended.fence, first, CHUNK_LINES, self.limits.window)
        return int(await self._run("withdraw", *args)) >= 0

    async def finalize(self, tended: Tended, files: Sequence[NewFile], usage: BatchUsage) -> bool:
        """End the batch with these files, which are on the volume already."""
        record = await self.batch(tended.batch)
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
        args = (tended.batch, tended.fence, keep, usage.model_dump_json(), *named)
        return bool(await self._run("finalize", *args))

    async def sweep(self, tended: Tended, first: int) -> int:
        """Let ended jobs fade -> 1: all of them do, 0: more are left, -1: not its steward."""
        args = (tended.batch, tended.fence, first, CHUNK_LINES, keys.ENDED_JOB_SECONDS)
        return int(await self._run("sweep", *args))

    async def forget(self, tended: Tended) -> bool:
        return bool(await self._run("forget", tended.batch, tended.fence))

    async def purge(self, batch: str) -> bool:
        """Forget an ended batch at once; False where there is none that has ended."""
        return bool(await self._run("purge", batch))

    async def batch(self, id: str) -> BatchRecord | None:
        fields = await read_hash(self.client, key("batch", id))
        return batch_from_hash(id, fields) if fields else None

    async def page(self, tenant: str, wanted: PageRequest) -> Page[BatchRecord]:
        """Raises UnknownCursor."""
        return await read_page(self.client, key("batches", tenant), wanted, self._read_batches)

    async def made_by(self, tenant: str, idempotency_key: str) -> tuple[str, str] | None:
        """The batch that this key made and the digest of its request."""
        found = await read_hash(self.client, key("idem", tenant, idempotency_key))
        return (found["id"], found["digest"]) if found else None

    async def job(self, id: str) -> JobRecord | None:
        fields = await read_hash(self.client, key("job", id))
        return job_from_hash(id, fields) if fields else None

    async def ends(self, batch: str, first: int, count: int) -> list[LineEnd]:
        """How lines `first`, `first` + 1, ... ended; a state of None: never submitted."""
        names = [key("job", f"{batch}/{idx}") for idx in range(first, first + count)]
        rows = await read_fields(self.client, names, ("state", "result"))
        return [
            LineEnd(
                state=JobState(state) if state else None,
                result=LineResult.model_validate_json(result) if result else LineResult(),
            )
            for state, result in rows
        ]

    async def census(self, *, silence_ms: int | None = None) -> Census:
        lease = self.limits.lease_ms
        found = await self._run("census", lease if silence_ms is None else silence_ms)
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
        # One real key tells a cluster which node it is for.
        return await self._scripts[name](keys=[key("care")], args=texts)


def _flat(fields: Mapping[str, object]) -> list[object]:
    return [value for pair in fields.items() for value in pair]
