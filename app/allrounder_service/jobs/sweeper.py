"""Garbage collection on the volume.

Removed are blobs that no record refers to, drafts of crashed writers, and the responses of finished
batches. Sweepers take no locks; each tolerates files that another removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from redis.asyncio import Redis

from allrounder_service.jobs import redis_keys as keys
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.records import BATCH_ID, SHA256
from allrounder_service.jobs.redis_keys import key
from allrounder_service.jobs.redis_reads import read_existing, read_fields

logger = logging.getLogger(__name__)

_MARK = "volume"


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreferencedFiles:
    """Counts of what lies on a volume without a record in the queue."""

    num_files: int
    num_bytes: int
    num_batches: int


class Sweeper:
    """Sweeps one volume for one Redis.

    Args:
        grace_seconds: age below which nothing is removed, because its record may follow.
        draft_seconds: time since the last write after which the writer of a draft has crashed.
    """

    def __init__(
        self,
        client: Redis,
        store: BlobStore,
        *,
        grace_seconds: float = keys.GRACE_SECONDS,
        draft_seconds: float = keys.DRAFT_SECONDS,
    ) -> None:
        self._client = client
        self._store = store
        self._grace_seconds = grace_seconds
        self._draft_seconds = draft_seconds

    async def sweep(self) -> int:
        """-> the number of files removed; 0 where the volume belongs to another queue."""
        if not await self._is_ours():
            logger.warning(
                "the volume is not swept: it belongs to another queue, or this one has lost its "
                "records; `allrounder jobs adopt-volume` says what is there and makes it this "
                "queue's"
            )
            return 0
        removed = await self._process_trash()
        for folder in await asyncio.to_thread(_listed, self._store.blobs):
            removed += await self._sweep_blobs(folder)
        removed += await asyncio.to_thread(self._sweep_drafts)
        return removed + await self._sweep_results()

    async def sweep_if_due(self) -> int:
        """Sweep unless any process did so within SWEEP_SECONDS."""
        is_due = await self._client.set(key("sweeping"), "1", nx=True, ex=keys.SWEEP_SECONDS)
        return await self.sweep() if is_due else 0

    async def adopt(self) -> None:
        """Make the volume this queue's: later sweeps remove what has no record in the queue."""
        mark, _ = await asyncio.to_thread(self._read_mark)
        if not mark:
            mark = await asyncio.to_thread(self._write_mark, secrets.token_hex(16))
        await self._client.set(key("volume"), mark)

    async def unreferenced(self) -> UnreferencedFiles:
        """What sweeps will remove once the volume is this queue's."""
        sizes: list[int] = []
        for folder in await asyncio.to_thread(_listed, self._store.blobs):
            blobs = await self._unreferenced(await asyncio.to_thread(_listed, folder))
            sizes += await asyncio.to_thread(_sizes, blobs)
        batches = await self._finished(await asyncio.to_thread(_listed, self._store.results))
        return UnreferencedFiles(
            num_files=len(sizes), num_bytes=sum(sizes), num_batches=len(batches)
        )

    async def _is_ours(self) -> bool:
        """Protects the files of an existing volume from a queue that has lost its records."""
        mark, is_empty = await asyncio.to_thread(self._read_mark)
        if not mark or is_empty:
            await self._client.set(key("volume"), mark or secrets.token_hex(16), nx=True)
        known = cast("str | None", await self._client.get(key("volume")))
        if not mark and known is not None:
            mark = await asyncio.to_thread(self._write_mark, known)
        return mark == known

    def _read_mark(self) -> tuple[str, bool]:
        """-> the mark of the volume or '', and whether the volume holds no files."""
        is_empty = not any(_listed(folder) for folder in _listed(self._store.blobs))
        path = self._store.blobs.parent / _MARK
        return (path.read_text() if path.exists() else ""), is_empty

    def _write_mark(self, mark: str) -> str:
        path = self._store.blobs.parent / _MARK
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(mark)
        return path.read_text()

    async def _sweep_blobs(self, folder: Path) -> int:
        unreferenced = await self._unreferenced(await asyncio.to_thread(self._old, folder))
        if not unreferenced:
            return 0
        await asyncio.to_thread(self._to_trash, unreferenced)
        return await self._process_trash()

    def _to_trash(self, blobs: Iterable[Path]) -> None:
        for path in blobs:
            with contextlib.suppress(FileNotFoundError):
                path.rename(self._store.trash / path.name)

    async def _process_trash(self) -> int:
        """Restore blobs that were referenced or touched before they were moved here, delete others.

        Later uploads do not find the bytes and store a new blob.
        """
        listed = await asyncio.to_thread(_listed, self._store.trash)
        unreferenced = await self._unreferenced(
            await asyncio.to_thread(self._old, self._store.trash)
        )
        await asyncio.to_thread(self._empty_trash, listed, frozenset(unreferenced))
        return len(unreferenced)

    def _empty_trash(self, listed: Iterable[Path], unreferenced: frozenset[Path]) -> None:
        for path in listed:
            with contextlib.suppress(FileNotFoundError):
                if path in unreferenced:
                    path.unlink()
                else:
                    os.utime(path)
                    self._store.move(path, self._store.blob_path(path.name))

    async def _unreferenced(self, blobs: Sequence[Path]) -> list[Path]:
        ours = [path for path in blobs if SHA256.fullmatch(path.name)]
        needed = await read_existing(self._client, [key("blob", path.name) for path in ours])
        return [path for path, is_needed in zip(ours, needed, strict=True) if not is_needed]

    def _sweep_drafts(self) -> int:
        abandoned = [
            path for path in _listed(self._store.drafts) if _age(path) > self._draft_seconds
        ]
        for path in abandoned:
            path.unlink(missing_ok=True)
        return len(abandoned)

    async def _sweep_results(self) -> int:
        finished = await self._finished(await asyncio.to_thread(self._old, self._store.results))
        await asyncio.to_thread(_remove_folders, finished)
        return len(finished)

    async def _finished(self, results: Sequence[Path]) -> list[Path]:
        """Folders whose batch has its output files, or has no record."""
        ours = [path for path in results if BATCH_ID.fullmatch(path.name)]
        rows = await read_fields(
            self._client, [key("batch", path.name) for path in ours], ("swept",)
        )
        return [path for path, (swept,) in zip(ours, rows, strict=True) if swept != "0"]

    def _old(self, folder: Path) -> list[Path]:
        return [path for path in _listed(folder) if _age(path) > self._grace_seconds]


def _listed(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return []


def _age(path: Path) -> float:
    """Seconds since the last write or touch; 0 for a file that was removed."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime
    return 0.0


def _sizes(paths: Iterable[Path]) -> list[int]:
    """In bytes, of the files that still exist."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.lstat().st_size)
    return found


def _remove_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
