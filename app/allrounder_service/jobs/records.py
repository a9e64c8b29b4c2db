"""What Redis holds of batches, lines and results, as typed records with a JSON form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from allrounder_service.jobs.states import BatchStatus

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LineRef(Record):
    """Where a line of a batch lies in the bytes of its input file."""

    sha256: Sha256
    offset: Annotated[int, Field(ge=0)]
    length: Annotated[int, Field(ge=1)]


class LineResult(Record):
    """How a line ended. `sha256` names the response on the volume; without one there is none."""

    status: Annotated[int, Field(ge=100, le=599)] | None = None
    sha256: Sha256 | None = None
    code: str | None = None
    # Tokens, so that the batch can sum them without opening every response.
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    completion_tokens: Annotated[int, Field(ge=0)] = 0


class LineError(Record):
    """Why a batch is refused; `line` counts from 1, None where it is not about one line."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchUsage(Record):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class BatchRecord(Record):
    """One batch; times in milliseconds since 1970, None where it has not come to that."""

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
    usage: BatchUsage


class JobRecord(Record):
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


class FileRecord(Record):
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
