"""Bytes of files and line responses on a volume, named by their SHA-256.

Knows no records: Redis holds which of them refer to which bytes. Every method blocks; call it in a
thread. Committed bytes and their folder have been fsynced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO

from allrounder_service.jobs.records import BATCH_ID, SHA256

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BlobStore:
    """Folders `blobs/ab/<sha256>`, `results/<batch>/<sha256>.json`, `drafts/`, `trash/`.

    No path is built from anything but digests and ids of this service's own form.
    """

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.results = root / "results"
        self.drafts = root / "drafts"
        self.trash = root / "trash"

    def prepare(self) -> None:
        """Make the folders, readable by this user only."""
        for folder in (self.blobs, self.results, self.drafts, self.trash):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def draft(self, *, batch: str = "", fence: int = 0) -> Draft:
        """A new blob, not visible yet; `batch` and `fence` let `discard_drafts` find it."""
        owner = f"{_checked(BATCH_ID, batch)}.{fence:d}." if batch else ""
        return Draft(self, self.drafts / f"{owner}{secrets.token_hex(8)}")

    def discard_drafts(self, batch: str) -> None:
        """Remove what earlier controllers of this batch left: they crashed or lost their lease."""
        for path in self.drafts.glob(f"{_checked(BATCH_ID, batch)}.*"):
            path.unlink(missing_ok=True)

    def blob_path(self, sha256: str) -> Path:
        return self.blobs / sha256[:2] / _checked(SHA256, sha256)

    def open(self, sha256: str) -> BinaryIO:
        """Open for reading; the bytes stay readable after a removal. Raises FileNotFoundError."""
        return os.fdopen(os.open(self.blob_path(sha256), _READ), "rb")

    def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Fewer bytes only at the end of the file. Raises FileNotFoundError."""
        with self.open(sha256) as file:
            file.seek(offset)
            return file.read(length)

    def touch(self, sha256: str) -> bool:
        """Protect these bytes from the sweeper until a record refers to them; False: not found."""
        try:
            os.utime(self.blob_path(sha256))
        except FileNotFoundError:
            return False
        return True

    def put_result(self, batch: str, data: bytes) -> str:
        """Store the response to one line -> its SHA-256."""
        folder = self.results / _checked(BATCH_ID, batch)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.drafts / secrets.token_hex(8)
        try:
            with os.fdopen(os.open(path, _CREATE, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.move(path, folder / f"{sha256}.json")
        finally:
            path.unlink(missing_ok=True)
        return sha256

    def read_result(self, batch: str, sha256: str) -> bytes:
        """Raises FileNotFoundError."""
        path = self.results / _checked(BATCH_ID, batch) / f"{_checked(SHA256, sha256)}.json"
        with os.fdopen(os.open(path, _READ), "rb") as file:
            return file.read()

    def remove_results(self, batch: str) -> None:
        shutil.rmtree(self.results / _checked(BATCH_ID, batch), ignore_errors=True)

    def move(self, source: Path, target: Path) -> None:
        """Durable once it returns. An existing `target` has the same bytes."""
        try:
            target.parent.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            sync_folder(target.parent.parent)
        source.replace(target)
        sync_folder(target.parent)


class Draft:
    """A blob while it is written by one writer. Ends with `commit` or `discard`."""

    def __init__(self, store: BlobStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._digest = hashlib.sha256()
        self._file = os.fdopen(os.open(path, _CREATE, 0o600), "wb")
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    def commit(self) -> str:
        """Make it a blob -> its SHA-256. Raises FileNotFoundError if the draft was discarded."""
        with self._file:
            self._file.flush()
            # The sweeper's grace period begins here, not with the last byte.
            os.utime(self._file.fileno())
            os.fsync(self._file.fileno())
        sha256 = self._digest.hexdigest()
        self._store.move(self._path, self._store.blob_path(sha256))
        return sha256

    def discard(self) -> None:
        """Has no effect after a commit."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make files that were created or renamed in it durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(form: re.Pattern[str], text: str) -> str:
    if not form.fullmatch(text):
        raise ValueError("paths are built from this service's own ids only")
    return text
