"""Operators' tasks on batch jobs: inspect, retry failed lines, purge, adopt a volume."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from allrounder.errors import BatchEnded, NotFound
from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.batch_files import read_lines
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect, queue_errors
from allrounder_service.jobs.embedded.folder import DataFolder
from allrounder_service.jobs.facade import BatchOrder, Jobs
from allrounder_service.jobs.files import FileRepository, StoredUpload, storage_errors
from allrounder_service.jobs.queue import CHUNK_LINES
from allrounder_service.jobs.records import (
    BATCH_ID,
    ENDED_BATCHES,
    BatchRecord,
    JobRecord,
    job_from_hash,
)
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import read_hashes, read_ranks, read_stream
from allrounder_service.jobs.runtime import files_folder, jobs_options
from allrounder_service.jobs.sweeper import Sweeper, UnreferencedFiles
from allrounder_service.settings import Settings

RETRY_OF = "retry_of"
_MAX_METADATA = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A line that was given up after its worker crashed repeatedly; `died_ms` since 1970."""

    job: str
    crashes: int
    died_ms: int


@asynccontextmanager
async def open_admin(settings: Settings) -> AsyncIterator[Admin]:
    """On the queue that `serve` uses with these settings. Raises QueueUnavailable in use."""
    folder = DataFolder.of(settings)
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
    else:
        folder.open()
        url = folder.url
    client = connect(url)
    try:
        with queue_errors():
            yield Admin(Jobs(client, BlobStore(files_folder(settings)), jobs_options(settings)))
    finally:
        await client.aclose()
        folder.close()


class Admin:
    """Has access to every tenant. Errors of redis-py pass through."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._queue = jobs.queue
        self._client = jobs.queue.client
        self._sweeper = Sweeper(self._client, jobs.store)

    async def batches(self) -> list[BatchRecord]:
        """All batches that have a record, newest first."""
        found = [
            await self._queue.batch(id) for id in await read_ranks(self._client, key(keys.DUE))
        ]
        return sorted(
            (each for each in found if each is not None), key=lambda each: -each.created_ms
        )

    async def batch(self, id: str) -> BatchRecord:
        """Raises NotFound."""
        record = await self._queue.batch(id) if BATCH_ID.fullmatch(id) else None
        if record is None:
            raise NotFound(f"there is no batch {id}")
        return record

    async def line(self, id: str) -> JobRecord:
        """`<batch>/<line>`. Raises NotFound, also some minutes after its batch has ended."""
        record = await self._queue.job(id)
        if record is None:
            raise NotFound(f"there is no line {id}, or its batch has ended")
        return record

    async def lines(self, record: BatchRecord) -> list[JobRecord]:
        """The lines of a batch that still have a job in the queue."""
        found = []
        for first in range(0, record.submitted, CHUNK_LINES):
            ids = [
                f"{record.id}/{n}" for n in range(first, min(first + CHUNK_LINES, record.submitted))
            ]
            hashes = await read_hashes(self._client, [key("job", id) for id in ids])
            pairs = zip(ids, hashes, strict=True)
            found += [job_from_hash(id, fields) for id, fields in pairs if fields]
        return found

    async def dead(self) -> list[DeadLetter]:
        """Oldest first."""
        return [
            DeadLetter(
                job=fields["j"], crashes=int(fields["crashes"]), died_ms=int(sid.split("-")[0])
            )
            for sid, fields in await read_stream(self._client, key("dead"))
        ]

    async def clear_dead(self) -> int:
        """Delete the dead letters -> how many there were."""
        removed = len(await self.dead())
        await self._client.delete(key("dead"))
        return removed

    async def retry(self, id: str) -> BatchRecord:
        """A new batch of the lines in the error file of an ended one.

        Raises NotFound where there is none or its input was deleted, BatchEnded where it has not
        ended yet.
        """
        record = await self.batch(id)
        if record.status not in ENDED_BATCHES:
            raise BatchEnded(f"batch {id} is {record.status}: only one that has ended is retried")
        if record.error_file_id is None:
            raise NotFound(f"no line of batch {id} failed")
        errors = await self._jobs.file(record.tenant, record.error_file_id)
        try:
            failed = await asyncio.to_thread(self._custom_ids, errors.sha256)
        except FileNotFoundError:
            raise NotFound("the error file of this batch was deleted") from None
        try:
            stored = await asyncio.to_thread(self._copy_lines, record.input_sha256, failed)
        except FileNotFoundError:
            raise NotFound("the input of this batch was deleted") from None
        file = await self._jobs.add_file(
            record.tenant, stored, filename=f"retry-of-{id}.jsonl", seconds=None
        )
        return await self._jobs.create_batch(
            record.tenant,
            BatchOrder(
                endpoint=record.endpoint,
                input_file_id=file.id,
                completion_window=record.completion_window,
                window_seconds=(record.expires_ms - record.created_ms) // 1000,
                metadata=_retried(record.metadata or {}, id),
                keep_files_seconds=record.keep_files_seconds,
            ),
        )

    async def unreferenced(self) -> UnreferencedFiles:
        """What is removed after `adopt_volume`."""
        with storage_errors():
            return await self._sweeper.unreferenced()

    async def adopt_volume(self) -> None:
        """Allow sweeps of the volume again, after the queue has lost its records."""
        with storage_errors():
            await self._sweeper.adopt()

    async def purge(self, id: str) -> BatchRecord:
        """Delete the output files of an ended batch now, its record at the next clean-up."""
        record = await self.batch(id)
        if record.status not in ENDED_BATCHES:
            raise BatchEnded(f"batch {id} is {record.status}: cancel it first")
        files = FileRepository(self._client)
        for file_id in (record.output_file_id, record.error_file_id):
            if file_id is not None:
                await files.drop(record.tenant, file_id)
        # False if the record was deleted meanwhile, which is the aim.
        await self._queue.purge(id)
        return record

    def _custom_ids(self, sha256: str) -> set[str]:
        with self._jobs.store.open(sha256) as file:
            return {str(json.loads(line.text)["custom_id"]) for line in read_lines(file)}

    def _copy_lines(self, sha256: str, wanted: set[str]) -> StoredUpload:
        upload = self._jobs.upload()
        try:
            with self._jobs.store.open(sha256) as file:
                for line in read_lines(file):
                    if json.loads(line.text)["custom_id"] in wanted:
                        upload.write(line.text + b"\n")
            return upload.commit()
        finally:
            upload.discard()


def _retried(metadata: Mapping[str, str], id: str) -> dict[str, str]:
    named = {**metadata, RETRY_OF: id}
    return named if len(named) <= _MAX_METADATA else dict(metadata)
