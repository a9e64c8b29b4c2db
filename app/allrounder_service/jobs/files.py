"""Stored files: an upload on its way to the volume, and the records of files in Redis.

An upload is hashed, counted and held to its limits as it arrives, and is never whole in memory.
Errors of redis-py pass through.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from redis.asyncio import Redis

from allrounder.errors import BodyTooLarge, InvalidField, StorageUnavailable
from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.batch_files import MAX_LINE_BYTES, LineCounter
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.queue import load_sources
from allrounder_service.jobs.records import FileRecord, file_from_hash, new_file_id
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import Page, PageRequest, read_hash, read_hashes, read_page

logger = logging.getLogger(__name__)

RETRY_STORAGE_SECONDS = 30.0
EXPIRE_CHUNK = 200

Purpose = Literal["batch", "batch_output"]


@contextmanager
def storage_errors() -> Iterator[None]:
    """A volume that is full, read-only or gone becomes StorageUnavailable."""
    try:
        yield
    except OSError as err:
        logger.exception("the volume of files cannot be used")
        raise StorageUnavailable(
            "the server cannot store files now", retry_after_seconds=RETRY_STORAGE_SECONDS
        ) from err


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredUpload:
    """An upload whose bytes are on the volume."""

    sha256: str
    bytes: int
    lines: int


class Upload:
    """Ends with `commit` or `discard`. Every method blocks; call it in a thread.

    Raises: StorageUnavailable, besides what each method says.
    """

    def __init__(self, store: BlobStore, *, max_bytes: int, max_lines: int) -> None:
        with storage_errors():
            store.prepare()
            self._draft = store.draft()
        self._counter = LineCounter()
        self._max_bytes = max_bytes
        self._max_lines = max_lines

    def write(self, data: bytes) -> None:
        """Raises BodyTooLarge or InvalidField as soon as a limit is passed."""
        if self._draft.num_bytes + len(data) > self._max_bytes:
            raise BodyTooLarge(f"file: at most {self._max_bytes} bytes are allowed", param="file")
        self._counter.feed(data)
        self._check_lines()
        with storage_errors():
            self._draft.write(data)

    def commit(self) -> StoredUpload:
        """Make the bytes durable and visible. Raises InvalidField for an empty file."""
        self._counter.close()
        self._check_lines()
        if not self._counter.num_lines:
            raise InvalidField("file: the file holds no lines", param="file")
        num_bytes = self._draft.num_bytes
        with storage_errors():
            sha256 = self._draft.commit()
        return StoredUpload(sha256=sha256, bytes=num_bytes, lines=self._counter.num_lines)

    def discard(self) -> None:
        """Has no effect after a commit."""
        self._draft.discard()

    def _check_lines(self) -> None:
        if self._counter.num_lines > self._max_lines:
            raise InvalidField(f"file: at most {self._max_lines} lines are allowed", param="file")
        if self._counter.longest > MAX_LINE_BYTES:
            raise InvalidField(
                f"file: a line may have at most {MAX_LINE_BYTES} bytes", param="file"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUpload:
    """A file to be recorded, its bytes on the volume; kept for `seconds`, for ever with 0."""

    tenant: str
    filename: str
    sha256: str
    bytes: int
    lines: int
    seconds: int


class FileRepository:
    """Records of files: transitions, one script each, and lists."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        sources = load_sources()
        self._add = client.register_script(sources["add_file"])
        self._drop = client.register_script(sources["drop_file"])
        self._expire = client.register_script(sources["expire_files"])

    async def add(self, new: NewUpload) -> FileRecord:
        """The bytes must be on the volume, because a visible record promises them."""
        id, at = new_file_id(), [key(keys.DUE)]
        fields = ("filename", new.filename, "purpose", "batch", "bytes", new.bytes)
        args = (id, new.tenant, new.sha256, new.seconds, *fields, "lines", new.lines)
        created_at = int(await self._add(keys=at, args=args))
        return FileRecord(
            id=id,
            tenant=new.tenant,
            filename=new.filename,
            purpose="batch",
            bytes=new.bytes,
            lines=new.lines,
            sha256=new.sha256,
            created_at=created_at,
            expires_at=created_at + new.seconds if new.seconds else 0,
        )

    async def get(self, tenant: str, id: str) -> FileRecord | None:
        """None also for another tenant's file."""
        fields = await read_hash(self._client, key("file", id))
        return file_from_hash(id, fields) if fields.get("tenant") == tenant else None

    async def page(
        self, tenant: str, wanted: PageRequest, *, purpose: str | None = None
    ) -> Page[FileRecord]:
        """Raises UnknownCursor."""
        read = partial(self._read_many, purpose=purpose)
        return await read_page(self._client, key("files", tenant), wanted, read)

    async def drop(self, tenant: str, id: str) -> bool:
        """False where the tenant has no such file."""
        return bool(await self._drop(keys=[key(keys.DUE)], args=(id, tenant)))

    async def expire(self) -> int:
        """Delete expired files, EXPIRE_CHUNK at a time -> how many."""
        total = 0
        while True:
            num = int(await self._expire(keys=[key(keys.DUE)], args=(EXPIRE_CHUNK,)))
            total += num
            if num < EXPIRE_CHUNK:
                return total

    async def _read_many(
        self, ids: Sequence[str], *, purpose: str | None
    ) -> Sequence[FileRecord | None]:
        rows = await read_hashes(self._client, [key("file", id) for id in ids])
        return [
            file_from_hash(id, fields) if fields and purpose in (None, fields["purpose"]) else None
            for id, fields in zip(ids, rows, strict=True)
        ]
