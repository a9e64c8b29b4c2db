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
from allrounder_service.jobs.blob_store import Store
from allrounder_service.jobs.connection import queue_errors
from allrounder_service.jobs.file_records import Files, NewUpload
from allrounder_service.jobs.ids import BATCH_ID, FILE_ID, new_batch_id
from allrounder_service.jobs.pages import Page, PageRequest, UnknownCursor
from allrounder_service.jobs.queue import Queue
from allrounder_service.jobs.records import BatchRecord, FileRecord
from allrounder_service.jobs.states import BatchStatus
from allrounder_service.jobs.steward import Steward
from allrounder_service.jobs.sweeper import Sweeper
from allrounder_service.jobs.transitions import Admission, NewBatch, QueueLimits
from allrounder_service.jobs.uploads import Stored, Upload

MAX_FILENAME_CHARS = 255
# Lines leave the queue at the speed of the model; asking every second would change nothing.
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
    """What a caller asks for; `idempotency_key` '' where he gave none."""

    endpoint: str
    input_file_id: str
    completion_window: str
    window_seconds: int
    metadata: dict[str, str] | None = None
    keep_files_seconds: int | None = None
    idempotency_key: str = ""

    @property
    def digest(self) -> str:
        """The same for the same request."""
        said = {
            "endpoint": self.endpoint,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "metadata": self.metadata,
            "keep_files_seconds": self.keep_files_seconds,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _answers(
    method: Callable[Concatenate[Jobs, P], Awaitable[T]],
) -> Callable[Concatenate[Jobs, P], Awaitable[T]]:
    """An outage of Redis becomes QueueUnavailable, an unknown cursor a wrong field."""

    @wraps(method)
    async def answering(self: Jobs, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with queue_errors():
            try:
                return await method(self, *args, **kwargs)
            except UnknownCursor:
                raise InvalidField("after: no such id in this list", param="after") from None

    return answering


class Jobs:
    """Files, batches and the steward that looks after them.

    An id of another form, an unknown one and another tenant's are the same: NotFound. Every method
    that asks Redis raises QueueUnavailable while it is away.
    """

    def __init__(self, client: Redis, store: Store, options: JobsOptions) -> None:
        self.options = options
        self.store = store
        self.queue = Queue(client, options.queue)
        self.files = Files(client)
        self.steward = Steward(
            self.queue,
            store,
            self.files,
            Sweeper(client, store),
            poll_seconds=options.poll_seconds,
        )

    async def start(self) -> None:
        """Redis may be away: the steward waits for it. Raises OSError for an unusable volume."""
        await asyncio.to_thread(self.store.prepare)
        self.steward.start()

    async def stop(self) -> None:
        """The batch at hand is left to the next steward."""
        await self.steward.stop()

    def upload(self) -> Upload:
        """Where a new file is written to; blocks."""
        most = self.options
        return Upload(self.store, max_bytes=most.max_file_bytes, max_lines=most.max_batch_lines)

    @_answers
    async def add_file(
        self, tenant: str, stored: Stored, *, filename: str, seconds: int | None
    ) -> FileRecord:
        """Make stored bytes a file, kept as long as batches are unless `seconds` says otherwise."""
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

    @_answers
    async def file(self, tenant: str, id: str) -> FileRecord:
        record = await self.files.get(tenant, id) if FILE_ID.fullmatch(id) else None
        return record or _no_file()

    @_answers
    async def list_files(
        self, tenant: str, wanted: PageRequest, *, purpose: str | None = None
    ) -> Page[FileRecord]:
        return await self.files.page(tenant, wanted, purpose=purpose)

    @_answers
    async def delete_file(self, tenant: str, id: str) -> None:
        if not FILE_ID.fullmatch(id) or not await self.files.drop(tenant, id):
            _no_file()

    async def open_file(self, record: FileRecord) -> BinaryIO:
        """Its bytes, also should it be deleted meanwhile; the caller closes it."""
        try:
            return await asyncio.to_thread(self.store.open, record.sha256)
        except FileNotFoundError:
            _no_file()

    @_answers
    async def create_batch(self, tenant: str, order: BatchOrder) -> BatchRecord:
        """Admit a batch; the same order with the same idempotency key gives the first one.

        Raises: IdempotencyKeyReused, InvalidField, QueueFull.
        """
        first = await self._first_of(tenant, order)
        if first is not None:
            return first
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
        self.steward.wake()
        return await self._batch(tenant, id)

    @_answers
    async def batch(self, tenant: str, id: str) -> BatchRecord:
        return await self._batch(tenant, id)

    @_answers
    async def list_batches(self, tenant: str, wanted: PageRequest) -> Page[BatchRecord]:
        return await self.queue.page(tenant, wanted)

    @_answers
    async def cancel_batch(self, tenant: str, id: str) -> BatchRecord:
        """Cancelling twice is fine. Raises BatchEnded where the files are (being) written."""
        status = await self.queue.cancel(id, tenant) if BATCH_ID.fullmatch(id) else None
        if status is None:
            _no_batch()
        if status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            raise BatchEnded(f"a batch that is {status} cannot be cancelled")
        self.steward.wake()
        return await self._batch(tenant, id)

    async def _batch(self, tenant: str, id: str) -> BatchRecord:
        record = await self.queue.batch(id) if BATCH_ID.fullmatch(id) else None
        return record if record is not None and record.tenant == tenant else _no_batch()

    async def _first_of(self, tenant: str, order: BatchOrder) -> BatchRecord | None:
        """The batch that this key made, even if its input was deleted since.

        None also where that batch is forgotten: the key is as good as new.
        """
        if not order.idempotency_key:
            return None
        made = await self.queue.made_by(tenant, _key_digest(order.idempotency_key))
        if made is None:
            return None
        id, digest = made
        record = await self.queue.batch(id)
        if record is not None and digest != order.digest:
            _key_reused()
        return record

    async def _input_file(self, tenant: str, id: str) -> FileRecord:
        file = await self.files.get(tenant, id) if FILE_ID.fullmatch(id) else None
        # The touch keeps the bytes until the batch has its own claim on them.
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
    """The last part of whatever the client called it; shown, never used as a path."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    printable = "".join(each for each in last if each.isprintable())
    return printable[:MAX_FILENAME_CHARS] or "file.jsonl"
