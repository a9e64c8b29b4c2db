"""The batch controller: validates batches, submits their lines, finalizes and cleans up.

Any number of processes run one. A lease gives a batch to one controller at a time; after a pause
that was longer than the lease, its fencing token is stale and its next step is refused. Every step
is idempotent, so none needs to be undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import BinaryIO

from redis.exceptions import RedisError

from allrounder_service.jobs.batch_files import (
    MAX_ERRORS,
    OutputWriter,
    find_faults,
    parse_line,
    read_lines,
    take,
)
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.files import FileRepository
from allrounder_service.jobs.queue import CHUNK_LINES, BatchLease, Queue
from allrounder_service.jobs.records import BatchRecord, BatchStatus, LineError, LineRef
from allrounder_service.jobs.sweeper import Sweeper

logger = logging.getLogger(__name__)

# A batch that is being stopped is polled often: its caller waits for the last running lines.
ENDING_POLL_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 5.0
# A chunk takes about a second; a disk or a Redis that hangs must not delay the shutdown.
STOP_SECONDS = 10.0

_INPUT_LOST = LineError(code="input_file_lost", message="the input file is lost or damaged")


class LeaseLost(Exception):
    """Another controller has the batch, or this one is stopping; the step can be abandoned."""


class BatchController:
    """`start`, `wake` and `stop` it; tests call `step`."""

    def __init__(
        self,
        queue: Queue,
        store: BlobStore,
        files: FileRepository,
        sweeper: Sweeper,
        *,
        poll_seconds: float = 0.5,
    ) -> None:
        self._queue = queue
        self._store = store
        self._files = files
        self._sweeper = sweeper
        self._poll_seconds = poll_seconds
        self._maintenance_seconds = queue.limits.lease_ms / 3000
        self._maintenance_due = 0.0
        self._woken = asyncio.Event()
        self._stopping = False
        self._is_prepared = False
        self._withdrawn: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="batch-controller")

    def wake(self) -> None:
        """A batch is due: do not wait for the next poll."""
        self._woken.set()

    async def stop(self) -> None:
        """Finish the current chunk, hand the batch back, end."""
        self._stopping = True
        self._woken.set()
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(STOP_SECONDS):
                    await task

    async def step(self) -> bool:
        """Advance the batch that has been due longest; False: none is due."""
        lease = await self._queue.lease_batch()
        if lease is None:
            return False
        record = await self._queue.batch(lease.batch)
        if record is not None:
            with contextlib.suppress(LeaseLost):
                await self._advance(lease, record)
            await self._queue.hand_back(lease, poll_seconds=ENDING_POLL_SECONDS)
        return True

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._woken.clear()
            try:
                await self._run_maintenance()
                pause = 0.0 if await self.step() else self._poll_seconds
                failures = 0
            except Exception as err:
                # The batch stays leased, so that one that keeps failing is not retried at once.
                failures += 1
                # The server may have been emptied, or be a new one without lanes.
                self._is_prepared = False
                pause = min(MAX_BACKOFF_SECONDS, self._poll_seconds * 2 ** min(failures, 10))
                if isinstance(err, RedisError):
                    logger.warning("the queue cannot be reached", extra={"failures": failures})
                else:
                    logger.exception("a step of a batch failed")
            if pause:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    async def _run_maintenance(self) -> None:
        if time.monotonic() < self._maintenance_due:
            return
        if not self._is_prepared:
            await self._queue.prepare()
            self._is_prepared = True
        # Workers reap too; batches must come to an end even without any worker.
        await self._queue.reap()
        await self._files.expire()
        await self._sweeper.sweep_if_due()
        self._maintenance_due = time.monotonic() + self._maintenance_seconds

    async def _advance(self, lease: BatchLease, batch: BatchRecord) -> None:
        match batch.status:
            case BatchStatus.VALIDATING:
                await self._queue.begin(lease, await self._validate(lease, batch))
            case BatchStatus.IN_PROGRESS:
                await self._advance_running(lease, batch)
            case BatchStatus.CANCELLING if batch.remaining:
                await self._withdraw(lease, batch)
            case BatchStatus.CANCELLING | BatchStatus.FINALIZING:
                await self._finalize(lease, batch)
            case _:
                await self._clean_up(lease, batch)

    async def _validate(self, lease: BatchLease, batch: BatchRecord) -> list[LineError]:
        """Errors of the input, at most MAX_ERRORS; empty where it is valid."""
        found: list[LineError] = []
        num_lines = 0
        async with self._input(batch) as file:
            if file is None:
                return [_INPUT_LOST]
            faults = find_faults(read_lines(file), batch.endpoint)
            while chunk := await asyncio.to_thread(take, faults, CHUNK_LINES):
                num_lines += len(chunk)
                found += [fault for fault in chunk if fault is not None]
                if len(found) >= MAX_ERRORS:
                    return found[:MAX_ERRORS]
                await self._renew_lease(lease)
        return found if num_lines == batch.total else [_INPUT_LOST]

    async def _advance_running(self, lease: BatchLease, batch: BatchRecord) -> None:
        if batch.ending or await self._queue.expire(lease):
            await self._withdraw(lease, batch)
        elif batch.submitted < batch.total:
            await self._submit(lease, batch)

    async def _submit(self, lease: BatchLease, batch: BatchRecord) -> None:
        first = batch.submitted
        async with self._input(batch) as file:
            if file is None:
                raise FileNotFoundError("the input of a running batch is gone")
            refs = _refs(file, batch)
            while chunk := await asyncio.to_thread(take, refs, CHUNK_LINES):
                if not await self._queue.submit(lease, first, chunk):
                    raise LeaseLost
                first += len(chunk)
                await self._renew_lease(lease)

    async def _withdraw(self, lease: BatchLease, batch: BatchRecord) -> None:
        """One pass reaches all lines, because none is submitted once a batch is ending."""
        if batch.id in self._withdrawn:
            return
        for first in range(0, batch.submitted, CHUNK_LINES):
            if not await self._queue.withdraw(lease, first):
                raise LeaseLost
            await self._renew_lease(lease)
        self._withdrawn.add(batch.id)

    async def _finalize(self, lease: BatchLease, batch: BatchRecord) -> None:
        writer = await asyncio.to_thread(OutputWriter, self._store, batch, fence=lease.fence)
        try:
            if not await self._is_invalid(lease, batch):
                await self._write(lease, batch, writer)
            files = await asyncio.to_thread(writer.commit)
            await self._queue.finalize(lease, files, writer.usage)
        except FileNotFoundError:
            # The next controller of this batch may have removed the draft.
            await self._renew_lease(lease)
            raise
        finally:
            await asyncio.to_thread(writer.discard)

    async def _is_invalid(self, lease: BatchLease, batch: BatchRecord) -> bool:
        """A batch cancelled before its validation may hold lines without a custom_id."""
        return batch.in_progress_ms is None and bool(await self._validate(lease, batch))

    async def _write(self, lease: BatchLease, batch: BatchRecord, writer: OutputWriter) -> None:
        done = 0
        async with self._input(batch) as file:
            if file is None:
                logger.error("the input is lost; no files are made", extra={"batch": batch.id})
                return
            custom_ids = (parse_line(line.text)["custom_id"] for line in read_lines(file))
            while chunk := await asyncio.to_thread(take, custom_ids, CHUNK_LINES):
                ends = await self._queue.line_ends(batch.id, done, len(chunk))
                await asyncio.to_thread(writer.write, chunk, ends)
                done += len(chunk)
                await self._renew_lease(lease)

    async def _clean_up(self, lease: BatchLease, batch: BatchRecord) -> None:
        self._withdrawn.discard(batch.id)
        if batch.swept:
            await self._queue.forget(lease)
            return
        await asyncio.to_thread(self._store.discard_drafts, batch.id)
        await asyncio.to_thread(self._store.remove_results, batch.id)
        for first in range(0, max(1, batch.submitted), CHUNK_LINES):
            if await self._queue.sweep(lease, first) < 0:
                raise LeaseLost
            await self._renew_lease(lease)

    async def _renew_lease(self, lease: BatchLease) -> None:
        if self._stopping or not await self._queue.renew_batch(lease):
            raise LeaseLost

    @asynccontextmanager
    async def _input(self, batch: BatchRecord) -> AsyncIterator[BinaryIO | None]:
        """None where the bytes are lost; the batch must end nevertheless."""
        try:
            file = await asyncio.to_thread(self._store.open, batch.input_sha256)
        except FileNotFoundError:
            yield None
            return
        try:
            yield file
        finally:
            file.close()


def _refs(file: BinaryIO, batch: BatchRecord) -> Iterator[LineRef]:
    """References to the lines that were not submitted yet."""
    for line in islice(read_lines(file), batch.submitted, None):
        yield LineRef(sha256=batch.input_sha256, offset=line.offset, length=line.length)
