"""The JSONL files of a batch: reading and checking the input, writing output and error file.

The structure of every line is checked and any fault fails the whole batch, as with OpenAI. The
fields of a `body` are not: a wrong one fails that line alone. Blank lines do not count.
The bytes of the output files follow from the input and the results alone, and their ids from the
batch's, so writing them again after a crash is idempotent.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, TypeVar

from allrounder_service.jobs.blob_store import BlobStore, Draft
from allrounder_service.jobs.queue import LineEnd, NewFile
from allrounder_service.jobs.records import (
    BatchRecord,
    FileRecord,
    JobState,
    LineError,
    TokenUsage,
    derived_file_id,
    derived_line_id,
)

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 * 2**20
MAX_ERRORS = 100
MAX_CUSTOM_ID_CHARS = 512
# The same cap as that of a request's own body: many small values cost more memory than bytes.
MAX_JSON_VALUES = 65_536
ENDPOINTS = ("/v1/chat", "/v1/chat/completions")
OUTPUT = "output"
ERROR = "error"

_KEYS = frozenset({"custom_id", "method", "url", "body"})
_MESSAGES = {
    "batch_cancelled": "the batch was cancelled before this request was executed",
    "batch_expired": "the completion window ended before this request was executed",
    "input_unavailable": "the request could not be read from the volume of files",
    "worker_lost": "the worker failed repeatedly while it executed this request alone",
    "result_lost": "the response to this request is no longer on the volume",
}
_UNKNOWN = "this request could not be executed"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawLine:
    """`number` counts all lines from 1; `offset` and `length` are bytes, the newline excluded."""

    number: int
    offset: int
    length: int
    text: bytes


class LineFault(Exception):
    """What is wrong with one line; its text may be shown."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class LineCounter:
    """Counts the lines of a file that arrives in pieces, as `read_lines` will find them."""

    def __init__(self) -> None:
        self.num_lines = 0
        self.longest = 0
        self._length = 0
        self._is_blank = True

    def feed(self, data: bytes) -> None:
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._extend(part)
            self.close()
        self._extend(rest)

    def close(self) -> None:
        """The current line has ended."""
        self.num_lines += not self._is_blank
        self._length, self._is_blank = 0, True

    def _extend(self, part: bytes) -> None:
        self._length += len(part)
        self._is_blank = self._is_blank and not part.strip()
        self.longest = max(self.longest, self._length)


def read_lines(file: BinaryIO) -> Iterator[RawLine]:
    """All lines that are not blank."""
    offset = 0
    for number, line in enumerate(file, 1):
        text = line.removesuffix(b"\n")
        if text.strip():
            yield RawLine(number=number, offset=offset, length=len(text), text=text)
        offset += len(line)


def take(items: Iterator[T], limit: int, *, seconds: float = 1.0) -> list[T]:
    """The next items: at most `limit`, fewer after `seconds`, none only at the end."""
    until, taken = time.monotonic() + seconds, []
    for item in items:
        taken.append(item)
        if len(taken) >= limit or time.monotonic() > until:
            break
    return taken


def find_faults(lines: Iterable[RawLine], endpoint: str) -> Iterator[LineError | None]:
    """The error of each line, or None."""
    seen: dict[str, int] = {}
    for line in lines:
        try:
            custom_id = check_line(line.text, endpoint)
            if custom_id in seen:
                raise LineFault(
                    "duplicate_custom_id",
                    f"custom_id is the same as in line {seen[custom_id]}",
                    param="custom_id",
                )
        except LineFault as fault:
            yield LineError(
                code=fault.code, message=fault.message, param=fault.param, line=line.number
            )
        else:
            seen[custom_id] = line.number
            yield None


def check_line(text: bytes, endpoint: str) -> str:
    """The custom_id of a line for this endpoint. Raises LineFault."""
    line = parse_line(text)
    for name in sorted(_KEYS - set(line)):
        raise LineFault("missing_required_parameter", f"{name} is missing", param=name)
    if set(line) - _KEYS:
        known = ", ".join(sorted(_KEYS))
        raise LineFault("unknown_parameter", f"there is a key other than {known}")
    if line["method"] != "POST":
        raise LineFault("invalid_method", "method must be POST", param="method")
    if line["url"] != endpoint:
        raise LineFault("mismatched_url", f"url must be the batch's, {endpoint}", param="url")
    if not isinstance(line["body"], dict):
        raise LineFault("invalid_body", "body must be an object", param="body")
    if line["body"].get("stream"):
        raise LineFault("invalid_body", "a line cannot be streamed", param="body.stream")
    return _custom_id(line["custom_id"])


def parse_line(text: bytes) -> dict[str, Any]:
    """A line as an object. Raises LineFault."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_JSON_VALUES:
        raise LineFault("invalid_json_line", "the line holds too many values")
    try:
        line = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        raise LineFault("invalid_json_line", "the line is not valid JSON") from None
    if not isinstance(line, dict):
        raise LineFault("invalid_json_line", "the line must be a JSON object")
    return line


class OutputWriter:
    """One attempt under one lease. Ends with `commit` or `discard`. Every method blocks."""

    def __init__(self, store: BlobStore, batch: BatchRecord, *, fence: int) -> None:
        self._store = store
        self._batch = batch
        self._fence = fence
        self._drafts: dict[str, Draft] = {}
        self._num_lines = {OUTPUT: 0, ERROR: 0}
        self._idx = 0
        self._tokens = [0, 0]
        store.discard_drafts(batch.id)

    @property
    def usage(self) -> TokenUsage:
        return TokenUsage(prompt_tokens=self._tokens[0], completion_tokens=self._tokens[1])

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
        """Files whose bytes are now on the volume; one without lines is not created."""
        return [self._commit(role, draft) for role, draft in self._drafts.items()]

    def discard(self) -> None:
        """Has no effect after a commit."""
        for draft in self._drafts.values():
            draft.discard()

    def _response(self, end: LineEnd) -> tuple[dict[str, Any] | None, str]:
        """The stored response, or None and the error code."""
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


def _custom_id(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CUSTOM_ID_CHARS:
        raise LineFault(
            "invalid_custom_id",
            f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters",
            param="custom_id",
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise LineFault("invalid_json_line", "a key is given twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise LineFault("invalid_json_line", f"{name} is not valid JSON")


def _error(code: str) -> dict[str, str]:
    return {"code": code, "message": _MESSAGES.get(code, _UNKNOWN)}
