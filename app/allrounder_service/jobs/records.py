"""Ids, states and records of batches, lines and files, and their form in Redis.

Redis stores text only; the `..._from_hash` functions restore the types.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

_RANDOM_BYTES = 18

FILE_ID: Final = re.compile(r"file-[A-Za-z0-9_-]{24}")
BATCH_ID: Final = re.compile(r"batch_[A-Za-z0-9_-]{24}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")

_TIMES = (
    "in_progress_ms",
    "finalizing_ms",
    "completed_ms",
    "failed_ms",
    "expired_ms",
    "cancelling_ms",
    "cancelled_ms",
    "forget_ms",
)
_COUNTS = ("total", "remaining", "submitted", "completed", "failed", "created_ms", "expires_ms")
_ENDINGS: dict[str, Literal["", "cancelled", "expired"]] = {
    "": "",
    "cancelled": "cancelled",
    "expired": "expired",
}
_TEXTS = ("tenant", "endpoint", "input_file_id", "input_sha256", "completion_window")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


class BatchStatus(StrEnum):
    """As in the OpenAI API."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED_BATCHES = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)
NEXT_STATUS: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset(
        {BatchStatus.FAILED, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING}
    ),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.FINALIZING, BatchStatus.CANCELLING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.COMPLETED, BatchStatus.EXPIRED}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.CANCELLED}),
    BatchStatus.FAILED: frozenset(),
    BatchStatus.COMPLETED: frozenset(),
    BatchStatus.EXPIRED: frozenset(),
    BatchStatus.CANCELLED: frozenset(),
}


class StoredRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LineRef(StoredRecord):
    """Where a line of a batch lies in the bytes of its input file."""

    sha256: Sha256
    offset: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)]


class LineResult(StoredRecord):
    """How a line ended; `sha256` names its response on the volume, None where there is none."""

    status: Annotated[int, Field(ge=100, le=599)] | None = None
    sha256: Sha256 | None = None
    code: str | None = None
    # Tokens, so that the batch can sum them without opening every response.
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    completion_tokens: Annotated[int, Field(ge=0)] = 0


class LineError(StoredRecord):
    """Why a batch failed its validation; `line` counts from 1, None for the file as a whole."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class TokenUsage(StoredRecord):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class BatchRecord(StoredRecord):
    """One batch; times in milliseconds since 1970, None for a status that it has not had."""

    id: str
    tenant: str
    status: BatchStatus
    endpoint: str
    input_file_id: str
    input_sha256: str
    completion_window: str
    metadata: dict[str, str] | None
    total: int
    remaining: int
    submitted: int
    completed: int
    failed: int
    ending: Literal["", "cancelled", "expired"]
    created_ms: int
    expires_ms: int
    keep_files_seconds: int | None
    in_progress_ms: int | None
    finalizing_ms: int | None
    completed_ms: int | None
    failed_ms: int | None
    expired_ms: int | None
    cancelling_ms: int | None
    cancelled_ms: int | None
    swept: bool
    forget_ms: int | None
    output_file_id: str | None
    error_file_id: str | None
    errors: tuple[LineError, ...]
    usage: TokenUsage


class JobRecord(StoredRecord):
    """One line of a batch as the queue sees it."""

    id: str
    batch: str
    tenant: str
    state: str
    fence: int
    attempts: int
    crashes: int
    solo_crashes: int
    published: int
    owner: str | None
    lane: str | None
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    ref: LineRef
    result: LineResult | None


class FileRecord(StoredRecord):
    """One stored file; times in seconds since 1970, `expires_at` 0 where it is kept."""

    id: str
    tenant: str
    filename: str
    purpose: Literal["batch", "batch_output"]
    bytes: int
    lines: int
    sha256: Sha256
    created_at: int
    expires_at: int = 0

    def to_hash(self) -> dict[str, Any]:
        return self.model_dump(exclude={"id"})


def new_file_id() -> str:
    return f"file-{secrets.token_urlsafe(_RANDOM_BYTES)}"


def new_batch_id() -> str:
    return f"batch_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def derived_file_id(batch: str, role: str) -> str:
    """The same for every attempt, so that writing the file again does not create a second one."""
    return f"file-{_digest(batch, role)}"


def derived_line_id(batch: str, idx: int) -> str:
    return f"batch_req_{_digest(batch, str(idx))}"


def batch_from_hash(id: str, fields: Mapping[str, str]) -> BatchRecord:
    """Raises KeyError where the hash is not a batch's."""
    values: dict[str, Any] = {name: _integer(fields, name) for name in _TIMES}
    values |= {name: int(fields[name]) for name in _COUNTS}
    values |= {name: fields[name] for name in _TEXTS}
    return BatchRecord(
        id=id,
        status=BatchStatus(fields["status"]),
        metadata=json.loads(fields.get("metadata") or "null"),
        ending=_ENDINGS[fields["ending"]],
        keep_files_seconds=_integer(fields, "keep_files_seconds"),
        swept=fields["swept"] == "1",
        output_file_id=fields.get("output_file_id"),
        error_file_id=fields.get("error_file_id"),
        errors=tuple(LineError(**each) for each in json.loads(fields.get("errors") or "[]")),
        usage=TokenUsage.model_validate_json(fields.get("usage") or "{}"),
        **values,
    )


def job_from_hash(id: str, fields: Mapping[str, str]) -> JobRecord:
    """Raises KeyError where the hash is not a job's."""
    result = fields.get("result")
    counts = ("fence", "attempts", "crashes", "solo_crashes", "published", "created_ms")
    return JobRecord(
        id=id,
        batch=fields["batch"],
        tenant=fields["tenant"],
        state=fields["state"],
        owner=fields.get("owner"),
        lane=fields.get("slane"),
        started_ms=_integer(fields, "started_ms"),
        ended_ms=_integer(fields, "ended_ms"),
        ref=LineRef.model_validate_json(fields["ref"]),
        result=LineResult.model_validate_json(result) if result else None,
        **{name: int(fields[name]) for name in counts},
    )


def file_from_hash(id: str, fields: Mapping[str, str]) -> FileRecord:
    """Raises KeyError where the hash is not a file's."""
    counts = ("bytes", "lines", "created_at", "expires_at")
    return FileRecord(
        id=id,
        tenant=fields["tenant"],
        filename=fields["filename"],
        purpose="batch" if fields["purpose"] == "batch" else "batch_output",
        sha256=fields["sha256"],
        **{name: int(fields[name]) for name in counts},
    )


def _integer(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if name in fields else None


def _digest(*parts: str) -> str:
    found = hashlib.sha256("\0".join(parts).encode()).digest()[:_RANDOM_BYTES]
    return base64.urlsafe_b64encode(found).decode()
