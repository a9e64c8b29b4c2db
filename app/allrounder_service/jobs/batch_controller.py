"""Looks after batches: checks them, feeds their lines to the queue, ends them, cleans up.

Any number of processes run one. A batch has one steward at a time, by lease; one that was frozen
finds itself fenced off at its next step. Every step may be repeated, so none needs to be undone.
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

from allrounder_service.jobs import batch_files as lines
from allrounder_service.jobs.batch_files import OutputWriter, find_faults, read_lines, take
from allrounder_service.jobs.blob_store import Store
from allrounder_service.jobs.files import Files
from allrounder_service.jobs.queue import CHUNK_LINES, Queue, Tended
from allrounder_service.jobs.records import BatchRecord, BatchStatus, LineError, LineRef
from allrounder_service.jobs.sweeper import Sweeper

logger = logging.getLogger(__name__)

# Lines that still run are asked for often: somebody waits for the end of this batch.
ENDING_POLL_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 5.0
# A chunk takes about a second; a disk or a Redis that hangs must not keep the process alive.
STOP_SECONDS = 10.0

_INPUT_LOST = LineError(code="input_file_lost", message="the input file is lost or damaged")


class Fenced(Exception):
    """Another steward has the batch, or it is time to stop; the step ends without harm."""


class Steward:
    """`start`, `wake` and `stop` it; tests call `step`."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        files: Files,
        sweeper: Sweeper,
        *,
        poll_seconds: float = 0.5,
    ) -> None:
        self._queue = queue
        self._store = store
        self._files = files
        self._sweeper = sweeper
        self._poll_seconds = poll_seconds
        self._chore_seconds = queue.limits.lease_ms / 3000
        self._chores_due = 0.0
        self._woken = asyncio.Event()
        self._stopping = False
        self._is_prepared = False
        self._withdrawn: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name="steward")

    def wake(self) -> None:
        """There is something to do; do not wait for the next look."""
        self._woken.set()

    async def stop(self) -> None:
        """Finish the chunk at hand, hand the batch back, end."""
        self._stopping = True
        self._woken.set()
        task, self._task = self._task, None
        if task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(STOP_SECONDS):
                    await task

    async def step(self) -> bool:
        """Look after the batch that needs it most; False: none did."""
        tended = await self._queue.tend()
        if tended is None:
            return False
        record = await self._queue.batch(tended.batch)
        if record is not None:
            with contextlib.suppress(Fenced):
                await self._advance(tended, record)
            await self._queue.leave(tended, poll_seconds=ENDING_POLL_SECONDS)
        return True

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._woken.clear()
            try:
                await self._do_chores()
                pause = 0.0 if await self.step() else self._poll_seconds
                failures = 0
            except Exception as err:
                # The batch stays leased, so that one that cannot be dealt with does not spin.
                failures += 1
                # The server may have been emptied, or be a new one without lanes.
                self._is_prepared = False
                pause = min(MAX_BACKOFF_SECONDS, self._poll_seconds * 2 ** min(failures, 10))
                if isinstance(err, RedisError):
                    logger.warning("the queue cannot be reached", extra={"failures": failures})
                else:
                    logger.exception("a batch could not be looked after")
            if pause:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    async def _do_chores(self) -> None:
        if time.monotonic() < self._chores_due:
            return
        if not self._is_prepared:
            await self._queue.prepare()
            self._is_prepared = True
        # Not only workers reap: with the last of them dead, batches must still come to an end.
        await self._queue.reap()
        await self._files.expire()
        await self._sweeper.sweep_now_and_then()
        self._chores_due = time.monotonic() + self._chore_seconds

    async def _advance(self, tended: Tended, batch: BatchRecord) -> None:
        match batch.status:
            case BatchStatus.VALIDATING:
                await self._queue.begin(tended, await self._validate(tended, batch))
            case BatchStatus.IN_PROGRESS:
                await self._feed(tended, batch)
            case BatchStatus.CANCELLING if batch.remaining:
                await self._withdraw(tended, batch)
            case BatchStatus.CANCELLING | BatchStatus.FINALIZING:
                await self._finalize(tended, batch)
            case _:
                await self._clean_up(tended, batch)

    async def _validate(self, tended: Tended, batch: BatchRecord) -> list[LineError]:
        """What is wrong with the input, at most MAX_ERRORS; empty where it may be run."""
        found: list[LineError] = []
        num_lines = 0
        async with self._input(batch) as file:
            if file is None:
                return [_INPUT_LOST]
            faults = find_faults(read_lines(file), batch.endpoint)
            while chunk := await asyncio.to_thread(take, faults, CHUNK_LINES):
                num_lines += len(chunk)
                found += [fault for fault in chunk if fault is not None]
                if len(found) >= lines.MAX_ERRORS:
                    return found[: lines.MAX_ERRORS]
                await self._go_on(tended)
        return found if num_lines == batch.total else [_INPUT_LOST]

    async def _feed(self, tended: Tended, batch: BatchRecord) -> None:
        if batch.ending or await self._queue.expire(tended):
            await self._withdraw(tended, batch)
        elif batch.submitted < batch.total:
            await self._submit(tended, batch)

    async def _submit(self, tended: Tended, batch: BatchRecord) -> None:
        first = batch.submitted
        async with self._input(batch) as file:
            if file is None:
                raise FileNotFoundError("the input of a running batch is gone")
            refs = _refs(file, batch)
            while chunk := await asyncio.to_thread(take, refs, CHUNK_LINES):
                if not await self._queue.submit(tended, first, chunk):
                    raise Fenced
                first += len(chunk)
                await self._go_on(tended)

    async def _withdraw(self, tended: Tended, batch: BatchRecord) -> None:
        """No line is submitted once a batch is ending, so one pass reaches them all."""
        if batch.id in self._withdrawn:
            return
        for first in range(0, batch.submitted, CHUNK_LINES):
            if not await self._queue.withdraw(tended, first):
                raise Fenced
            await self._go_on(tended)
        self._withdrawn.add(batch.id)

    async def _finalize(self, tended: Tended, batch: BatchRecord) -> None:
        writer = await asyncio.to_thread(OutputWriter, self._store, batch, fence=tended.fence)
        try:
            if not await self._is_unreadable(tended, batch):
                await self._write(tended, batch, writer)
            files = await asyncio.to_thread(writer.commit)
            await self._queue.finalize(tended, files, writer.usage)
        except FileNotFoundError:
            # A draft may have been removed by the steward that came after this one.
            await self._go_on(tended)
            raise
        finally:
            await asyncio.to_thread(writer.discard)

    async def _is_unreadable(self, tended: Tended, batch: BatchRecord) -> bool:
        """A batch cancelled before its input was checked may hold lines without a custom_id."""
        return batch.in_progress_ms is None and bool(await self._validate(tended, batch))

    async def _write(self, tended: Tended, batch: BatchRecord, writer: OutputWriter) -> None:
        done = 0
        async with self._input(batch) as file:
            if file is None:
                logger.error("the input is lost; no files are made", extra={"batch": batch.id})
                return
            custom_ids = (lines.parse_line(line.text)["custom_id"] for line in read_lines(file))
            while chunk := await asyncio.to_thread(take, custom_ids, CHUNK_LINES):
                ends = await self._queue.ends(batch.id, done, len(chunk))
                await asyncio.to_thread(writer.write, chunk, ends)
                done += len(chunk)
                await self._go_on(tended)

    async def _clean_up(self, tended: Tended, batch: BatchRecord) -> None:
        self._withdrawn.discard(batch.id)
        if batch.swept:
            await self._queue.forget(tended)
            return
        await asyncio.to_thread(self._store.discard_drafts, batch.id)
        await asyncio.to_thread(self._store.remove_results, batch.id)
        for first in range(0, max(1, batch.submitted), CHUNK_LINES):
            if await self._queue.sweep(tended, first) < 0:
                raise Fenced
            await self._go_on(tended)

    async def _go_on(self, tended: Tended) -> None:
        if self._stopping or not await self._queue.keep(tended):
            raise Fenced

    @asynccontextmanager
    async def _input(self, batch: BatchRecord) -> AsyncIterator[BinaryIO | None]:
        """None where the bytes are gone: the batch must come to an end all the same."""
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
    """Of the lines that were not submitted yet."""
    for line in islice(read_lines(file), batch.submitted, None):
        yield LineRef(sha256=batch.input_sha256, offset=line.offset, length=line.length)
