"""Batch jobs as the endpoints see them: files and batches of a tenant, in typed errors only."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import BinaryIO, Concatenate, NoReturn, ParamSpec, TypeVar

from redis.asyncio import Redis

from allrounder.errors import (
    BatchEnded,
    IdempotencyKeyReused,
    InvalidField,
    NotFound,
    QueueFull,
)
from allrounder_service.jobs.batch_controller import BatchController
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import queue_errors
from allrounder_service.jobs.files import FileRepository, NewUpload, StoredUpload, Upload
from allrounder_service.jobs.queue import Admission, NewBatch, Queue, QueueLimits
from allrounder_service.jobs.records import (
    BATCH_ID,
    FILE_ID,
    BatchRecord,
    BatchStatus,
    FileRecord,
    new_batch_id,
)
from allrounder_service.jobs.redis_reads import Page, PageRequest, UnknownCursor
from allrounder_service.jobs.sweeper import Sweeper

MAX_FILENAME_CHARS = 255
# Lines leave the queue at the speed of the model, so an earlier retry would be refused again.
RETRY_FULL_SECONDS = 30.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobsOptions:
    """What the operator decides about batch jobs."""

    max_file_bytes: int = 200_000_000
    max_batch_lines: int = 50_000
    poll_seconds: float = 0.5
    queue: QueueLimits = field(default_factory=QueueLimits)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOrder:
    """A batch as a caller requests it; `idempotency_key` '' where none was given."""

    endpoint: str
    input_file_id: str
    completion_window: str
    window_seconds: int
    metadata: dict[str, str] | None = None
    keep_files_seconds: int | None = None
    idempotency_key: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the request, whatever its idempotency key."""
        request = {
            "endpoint": self.endpoint,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "metadata": self.metadata,
            "keep_files_seconds": self.keep_files_seconds,
        }
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _typed_errors(
    method: Callable[Concatenate[Jobs, P], Awaitable[T]],
) -> Callable[Concatenate[Jobs, P], Awaitable[T]]:
    """An outage of Redis becomes QueueUnavailable, an unknown cursor InvalidField."""

    @wraps(method)
    async def wrapped(self: Jobs, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with queue_errors():
            try:
                return await method(self, *args, **kwargs)
            except UnknownCursor:
                raise InvalidField("after: no such id in this list", param="after") from None

    return wrapped


class Jobs:
    """Files, batches, and the batch controller of this process.

    NotFound is raised alike for an id of another form, an unknown one and another tenant's. Every
    method that uses Redis raises QueueUnavailable while it is away.
    """

    def __init__(self, client: Redis, store: BlobStore, options: JobsOptions) -> None:
        self.options = options
        self.store = store
        self.queue = Queue(client, options.queue)
        self.files = FileRepository(client)
        self.controller = BatchController(
            self.queue,
            store,
            self.files,
            Sweeper(client, store),
            poll_seconds=options.poll_seconds,
        )

    async def start(self) -> None:
        """Redis may be away: the controller retries. Raises OSError for an unusable volume."""
        await asyncio.to_thread(self.store.prepare)
        self.controller.start()

    async def stop(self) -> None:
        """The current batch is left to another controller."""
        await self.controller.stop()

    def upload(self) -> Upload:
        """Start an upload; blocks."""
        most = self.options
        return Upload(self.store, max_bytes=most.max_file_bytes, max_lines=most.max_batch_lines)

    @_typed_errors
    async def add_file(
        self, tenant: str, stored: StoredUpload, *, filename: str, seconds: int | None
    ) -> FileRecord:
        """Record an upload as a file, kept for `seconds` or else for the retention of batches."""
        return await self.files.add(
            NewUpload(
                tenant=tenant,
                filename=_shown_name(filename),
                sha256=stored.sha256,
                bytes=stored.bytes,
                lines=stored.lines,
                seconds=seconds or self.options.queue.retention_seconds,
            )
        )

    @_typed_errors
    async def file(self, tenant: str, id: str) -> FileRecord:
        record = await self.files.get(tenant, id) if FILE_ID.fullmatch(id) else None
        return record or _no_file()

    @_typed_errors
    async def list_files(
        self, tenant: str, wanted: PageRequest, *, purpose: str | None = None
    ) -> Page[FileRecord]:
        return await self.files.page(tenant, wanted, purpose=purpose)

    @_typed_errors
    async def delete_file(self, tenant: str, id: str) -> None:
        if not FILE_ID.fullmatch(id) or not await self.files.drop(tenant, id):
            _no_file()

    async def open_file(self, record: FileRecord) -> BinaryIO:
        """Open its bytes, which stay readable if it is deleted meanwhile; the caller closes it."""
        try:
            return await asyncio.to_thread(self.store.open, record.sha256)
        except FileNotFoundError:
            _no_file()

    @_typed_errors
    async def create_batch(self, tenant: str, order: BatchOrder) -> BatchRecord:
        """Admit a batch; the same order with the same idempotency key returns the first one.

        Raises: IdempotencyKeyReused, InvalidField, QueueFull.
        """
        existing = await self._existing_batch(tenant, order)
        if existing is not None:
            return existing
        file = await self._input_file(tenant, order.input_file_id)
        new = NewBatch(
            id=new_batch_id(),
            tenant=tenant,
            endpoint=order.endpoint,
            input_file_id=file.id,
            input_sha256=file.sha256,
            lines=file.lines,
            completion_window=order.completion_window,
            window_seconds=order.window_seconds,
            metadata=order.metadata,
            keep_files_seconds=order.keep_files_seconds,
            idempotency_key=_key_digest(order.idempotency_key),
            digest=order.digest,
        )
        admission, id = await self.queue.create(new)
        if admission is Admission.CONFLICT:
            _key_reused()
        if admission not in (Admission.OK, Admission.SAME):
            raise QueueFull(
                "the queue of batch jobs is full", retry_after_seconds=RETRY_FULL_SECONDS
            )
        self.controller.wake()
        return await self._batch(tenant, id)

    @_typed_errors
    async def batch(self, tenant: str, id: str) -> BatchRecord:
        return await self._batch(tenant, id)

    @_typed_errors
    async def list_batches(self, tenant: str, wanted: PageRequest) -> Page[BatchRecord]:
        return await self.queue.page(tenant, wanted)

    @_typed_errors
    async def cancel_batch(self, tenant: str, id: str) -> BatchRecord:
        """Idempotent. Raises BatchEnded once the batch is finalizing or has ended."""
        status = await self.queue.cancel(id, tenant) if BATCH_ID.fullmatch(id) else None
        if status is None:
            _no_batch()
        if status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            raise BatchEnded(f"a batch that is {status} cannot be cancelled")
        self.controller.wake()
        return await self._batch(tenant, id)

    async def _batch(self, tenant: str, id: str) -> BatchRecord:
        record = await self.queue.batch(id) if BATCH_ID.fullmatch(id) else None
        return record if record is not None and record.tenant == tenant else _no_batch()

    async def _existing_batch(self, tenant: str, order: BatchOrder) -> BatchRecord | None:
        """The batch created with this idempotency key, even if its input was deleted since.

        None also where that batch was deleted: the key may be used again.
        """
        if not order.idempotency_key:
            return None
        made = await self.queue.find_by_idempotency_key(tenant, _key_digest(order.idempotency_key))
        if made is None:
            return None
        id, digest = made
        record = await self.queue.batch(id)
        if record is not None and digest != order.digest:
            _key_reused()
        return record

    async def _input_file(self, tenant: str, id: str) -> FileRecord:
        file = await self.files.get(tenant, id) if FILE_ID.fullmatch(id) else None
        # The touch protects the bytes from the sweeper until the batch refers to them.
        if file is None or not await asyncio.to_thread(self.store.touch, file.sha256):
            raise InvalidField("input_file_id: there is no such file", param="input_file_id")
        if file.purpose != "batch":
            raise InvalidField(
                "input_file_id: the file's purpose must be batch", param="input_file_id"
            )
        most = self.options.queue
        if file.lines > min(most.max_lines, most.max_tenant_lines, self.options.max_batch_lines):
            raise InvalidField(
                "input_file_id: the file has more lines than this service takes at all",
                param="input_file_id",
            )
        return file


def _no_file() -> NoReturn:
    raise NotFound("there is no such file")


def _no_batch() -> NoReturn:
    raise NotFound("there is no such batch")


def _key_reused() -> NoReturn:
    raise IdempotencyKeyReused("this Idempotency-Key was used for another request")


def _key_digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def _shown_name(filename: str) -> str:
    """The last part of the client's file name; displayed, never used as a path."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    printable = "".join(each for each in last if each.isprintable())
    return printable[:MAX_FILENAME_CHARS] or "file.jsonl"
