"""Writes the output file and the error file of a batch: every custom_id once, in input order.

The bytes follow from the input and the results alone, and the ids from the batch's, so that
writing them again after a crash changes nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from allrounder_service.jobs.blob_store import Draft, Store
from allrounder_service.jobs.ids import derived_file_id, derived_line_id
from allrounder_service.jobs.records import BatchRecord, BatchUsage, FileRecord
from allrounder_service.jobs.states import JobState
from allrounder_service.jobs.transitions import LineEnd, NewFile

logger = logging.getLogger(__name__)

OUTPUT = "output"
ERROR = "error"

_MESSAGES = {
    "batch_cancelled": "the batch was cancelled before this request was executed",
    "batch_expired": "the completion window ended before this request was executed",
    "input_unavailable": "the request could not be read from the volume of files",
    "worker_lost": "the worker failed repeatedly while it executed this request alone",
    "result_lost": "the response to this request is no longer on the volume",
}
_UNKNOWN = "this request could not be executed"


class OutputWriter:
    """One attempt of one steward. Ends with `commit` or `discard`. Every method blocks."""

    def __init__(self, store: Store, batch: BatchRecord, *, fence: int) -> None:
        self._store = store
        self._batch = batch
        self._fence = fence
        self._drafts: dict[str, Draft] = {}
        self._num_lines = {OUTPUT: 0, ERROR: 0}
        self._idx = 0
        self._tokens = [0, 0]
        store.discard_drafts(batch.id)

    @property
    def usage(self) -> BatchUsage:
        return BatchUsage(prompt_tokens=self._tokens[0], completion_tokens=self._tokens[1])

    def write(self, custom_ids: Sequence[str], ends: Sequence[LineEnd]) -> None:
        """The next lines of the input and how they ended."""
        for custom_id, end in zip(custom_ids, ends, strict=True):
            response, code = self._response(end)
            role = OUTPUT if end.state is JobState.DONE and response is not None else ERROR
            line = {
                "id": derived_line_id(self._batch.id, self._idx),
                "custom_id": custom_id,
                "response": response,
                "error": None if response is not None else _error(code),
            }
            self._draft(role).write(json.dumps(line).encode() + b"\n")
            self._num_lines[role] += 1
            self._idx += 1
            self._tokens[0] += end.result.prompt_tokens
            self._tokens[1] += end.result.completion_tokens

    def commit(self) -> list[NewFile]:
        """Files that now lie on the volume; one without a line is not made."""
        return [self._commit(role, draft) for role, draft in self._drafts.items()]

    def discard(self) -> None:
        """Nothing happens after a commit."""
        for draft in self._drafts.values():
            draft.discard()

    def _response(self, end: LineEnd) -> tuple[dict[str, Any] | None, str]:
        """The stored response, or why there is none."""
        match end.state:
            case JobState.DONE | JobState.FAILED if end.result.sha256:
                try:
                    found = self._store.read_result(self._batch.id, end.result.sha256)
                    return json.loads(found), ""
                except (FileNotFoundError, ValueError):
                    logger.error("a response is lost", extra={"batch": self._batch.id})
                    return None, "result_lost"
            case JobState.DONE | JobState.FAILED:
                return None, end.result.code or "result_lost"
            case JobState.CANCELLED | JobState.EXPIRED:
                return None, f"batch_{end.state}"
            case _:
                return None, f"batch_{self._batch.ending or 'expired'}"

    def _draft(self, role: str) -> Draft:
        if role not in self._drafts:
            self._drafts[role] = self._store.draft(batch=self._batch.id, fence=self._fence)
        return self._drafts[role]

    def _commit(self, role: str, draft: Draft) -> NewFile:
        num_bytes = draft.num_bytes
        file = FileRecord(
            id=derived_file_id(self._batch.id, role),
            tenant=self._batch.tenant,
            filename=f"{self._batch.id}_{role}.jsonl",
            purpose="batch_output",
            bytes=num_bytes,
            lines=self._num_lines[role],
            sha256=draft.commit(),
            created_at=0,
        )
        return NewFile(role=f"{role}_file_id", file=file)


def _error(code: str) -> dict[str, str]:
    return {"code": code, "message": _MESSAGES.get(code, _UNKNOWN)}
