"""An input file while it comes in: hashed, counted, held to its limits, never whole in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from allrounder.errors import BodyTooLarge, InvalidField, StorageUnavailable
from allrounder_service.jobs.blob_store import Store
from allrounder_service.jobs.input_lines import MAX_LINE_BYTES, LineCounter

logger = logging.getLogger(__name__)

RETRY_STORAGE_SECONDS = 30.0


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
class Stored:
    """Bytes on the volume."""

    sha256: str
    bytes: int
    lines: int


class Upload:
    """Ends with `commit` or `discard`. Every method blocks; call it in a thread.

    Raises: StorageUnavailable, besides what each method says.
    """

    def __init__(self, store: Store, *, max_bytes: int, max_lines: int) -> None:
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

    def commit(self) -> Stored:
        """Put the bytes where others find them. Raises InvalidField for an empty file."""
        self._counter.close()
        self._check_lines()
        if not self._counter.num_lines:
            raise InvalidField("file: the file holds no lines", param="file")
        num_bytes = self._draft.num_bytes
        with storage_errors():
            sha256 = self._draft.commit()
        return Stored(sha256=sha256, bytes=num_bytes, lines=self._counter.num_lines)

    def discard(self) -> None:
        """Nothing happens after a commit."""
        self._draft.discard()

    def _check_lines(self) -> None:
        if self._counter.num_lines > self._max_lines:
            raise InvalidField(f"file: at most {self._max_lines} lines are allowed", param="file")
        if self._counter.longest > MAX_LINE_BYTES:
            raise InvalidField(
                f"file: a line may have at most {MAX_LINE_BYTES} bytes", param="file"
            )
