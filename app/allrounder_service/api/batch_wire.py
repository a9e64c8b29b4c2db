"""The answers of the files and batches endpoints, in OpenAI's form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from allrounder_service.jobs.records import ENDED_BATCHES, BatchRecord, FileRecord


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(BaseModel):
    """`line` counts from 1 in the input file; null where it is not about one line."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchTokenUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class Batch(BaseModel):
    """Times are in seconds since 1970, null where the batch has not come to that."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchTokenUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file_object(record: FileRecord) -> dict[str, Any]:
    found = FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at or None,
        filename=record.filename,
        purpose=record.purpose,
    )
    return found.model_dump()


def batch_object(record: BatchRecord) -> dict[str, Any]:
    found = Batch(
        id=record.id,
        endpoint=record.endpoint,
        errors=_errors(record),
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=record.status.value,
        output_file_id=record.output_file_id,
        error_file_id=record.error_file_id,
        created_at=record.created_ms // 1000,
        in_progress_at=_seconds(record.in_progress_ms),
        expires_at=record.expires_ms // 1000,
        finalizing_at=_seconds(record.finalizing_ms),
        completed_at=_seconds(record.completed_ms),
        failed_at=_seconds(record.failed_ms),
        expired_at=_seconds(record.expired_ms),
        cancelling_at=_seconds(record.cancelling_ms),
        cancelled_at=_seconds(record.cancelled_ms),
        request_counts=RequestCounts(
            total=record.total, completed=record.completed, failed=record.failed
        ),
        usage=_usage(record),
        metadata=record.metadata,
    )
    return found.model_dump()


def list_object(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _errors(record: BatchRecord) -> BatchErrors | None:
    if not record.errors:
        return None
    return BatchErrors(data=[BatchError(**error.model_dump()) for error in record.errors])


def _usage(record: BatchRecord) -> BatchTokenUsage | None:
    if record.status not in ENDED_BATCHES:
        return None
    usage = record.usage
    return BatchTokenUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000
