"""Records of stored files in Redis; their bytes are the store's.

Errors of redis-py pass through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from redis.asyncio import Redis

from allrounder_service.jobs.codec import file_from_hash
from allrounder_service.jobs.ids import new_file_id
from allrounder_service.jobs.lua import load_sources
from allrounder_service.jobs.pages import Page, PageRequest, read_page
from allrounder_service.jobs.records import FileRecord
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.replies import read_hash, read_hashes

EXPIRE_CHUNK = 200

Purpose = Literal["batch", "batch_output"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUpload:
    """Bytes that are on the volume, about to become a file; kept for ever with `seconds` 0."""

    tenant: str
    filename: str
    sha256: str
    bytes: int
    lines: int
    seconds: int


class Files:
    """Transitions and lists of file records, each transition one script."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        sources = load_sources()
        self._add = client.register_script(sources["add_file"])
        self._drop = client.register_script(sources["drop_file"])
        self._expire = client.register_script(sources["expire_files"])

    async def add(self, new: NewUpload) -> FileRecord:
        """The bytes must be on the volume: whoever sees the record may read them."""
        id, at = new_file_id(), [key("care")]
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
        """None also where it is another tenant's."""
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
        return bool(await self._drop(keys=[key("care")], args=(id, tenant)))

    async def expire(self) -> int:
        """Delete files whose time is over, EXPIRE_CHUNK at a time -> how many."""
        total = 0
        while True:
            num = int(await self._expire(keys=[key("care")], args=(EXPIRE_CHUNK,)))
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
