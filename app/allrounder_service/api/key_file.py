"""The file of API keys: digests, tenants, scopes, limits. Reloaded when it changes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from allrounder.errors import KeyFileUnusable
from allrounder_service.api.limits import KeyLimits

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 * 2**20
LIMIT_NAMES = tuple(field.name for field in fields(KeyLimits))

_STRICT = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Scope(StrEnum):
    """What a key gives access to; every key may read `/v1/models`."""

    CHAT = "chat"
    BATCH = "batch"
    METRICS = "metrics"
    DOCS = "docs"


class KeyRecord(BaseModel):
    """The stored record of a key, which does not contain the key.

    Attributes:
        sha256: of the whole key, in hexadecimal.
        requests_per_minute: as the setting of the same name, which it overrides; 0 is no limit.
    """

    model_config = _STRICT

    id: str = Field(pattern=r"^[a-z0-9]{4,32}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    scopes: tuple[Scope, ...] = (Scope.CHAT, Scope.BATCH)
    requests_per_minute: int | None = Field(default=None, ge=0)
    tokens_per_minute: int | None = Field(default=None, ge=0)
    concurrent_requests: int | None = Field(default=None, ge=0)
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    disabled: bool = False

    @property
    def own_limits(self) -> Mapping[str, int]:
        found = {name: getattr(self, name) for name in LIMIT_NAMES}
        return {name: value for name, value in found.items() if value is not None}

    def is_valid(self, now: datetime) -> bool:
        return not self.disabled and (self.expires is None or now < self.expires)


class KeyFile(BaseModel):
    model_config = _STRICT

    keys: tuple[KeyRecord, ...] = ()

    @field_validator("keys")
    @classmethod
    def _check_ids(cls, keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        if len({key.id for key in keys}) != len(keys):
            raise ValueError("two keys have the same id")
        return keys


def read_keys(path: Path) -> KeyFile:
    """Raises KeyFileUnusable, whose text gives the place of the fault and no content."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as err:
        raise KeyFileUnusable(f"the file of API keys cannot be read: {err.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise KeyFileUnusable("the file of API keys is too large")
    try:
        return KeyFile.model_validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_input=False, include_context=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise KeyFileUnusable(
            f"the file of API keys is not valid at {place}: {first['type']}"
        ) from None


@contextmanager
def edit_keys(path: Path) -> Iterator[dict[str, KeyRecord]]:
    """The keys by id, to be changed in place and saved atomically at the end.

    Holds a lock against concurrent changes. Only the owner may read the file; a missing one has no
    keys.
    """
    with _locked(path.parent):
        keys = {key.id: key for key in read_keys(path).keys} if path.exists() else {}
        yield keys
        _write(path, KeyFile(keys=tuple(keys.values())))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, keys: KeyFile) -> None:
    content = json.dumps(keys.model_dump(mode="json", exclude_none=True), indent=1) + "\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class WatchedKeys:
    """The keys of a file, which is checked every `seconds` and reloaded if it has changed.

    While the file is unreadable or invalid the last keys stay in use, and each reason is logged
    once. The constructor raises KeyFileUnusable.
    """

    def __init__(
        self, path: Path, *, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._seconds = seconds
        self._clock = clock
        self._checked_at = clock()
        self._seen = self._signature()
        self._records = self._read()
        self._logged: set[str] = set()

    def records(self) -> Mapping[str, KeyRecord]:
        """By id."""
        if self._clock() - self._checked_at >= self._seconds:
            self._reload_if_changed()
        return self._records

    def _reload_if_changed(self) -> None:
        self._checked_at = self._clock()
        seen = self._signature()
        if seen != self._seen:
            try:
                self._records = self._read()
            except KeyFileUnusable as err:
                self._log_once(err.message)
                return
            self._seen = seen
            logger.info("API keys read", extra={"num_keys": len(self._records)})
        self._logged.clear()

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            logger.error("the API keys stay as they were: %s", reason)
        self._logged.add(reason)

    def _read(self) -> Mapping[str, KeyRecord]:
        return {key.id: key for key in read_keys(self._path).keys}

    def _signature(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
