"""Hashes of Redis -> records. Redis knows only text; here it gets its types back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from allrounder_service.jobs.records import (
    BatchRecord,
    BatchUsage,
    FileRecord,
    JobRecord,
    LineError,
    LineRef,
    LineResult,
)
from allrounder_service.jobs.states import BatchStatus

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
        usage=BatchUsage.model_validate_json(fields.get("usage") or "{}"),
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
