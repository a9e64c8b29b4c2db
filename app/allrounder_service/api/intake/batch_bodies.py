"""The input of OpenAI's files and batches endpoints: queries, form fields, the body of a batch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from allrounder.validation import WireModel

MIN_EXPIRY_SECONDS = 3600
MAX_EXPIRY_SECONDS = 30 * 24 * 3600
MAX_WINDOW_SECONDS = 7 * 24 * 3600
MAX_FILES_LISTED = 10_000
MAX_BATCHES_LISTED = 100
MAX_METADATA = 16
MAX_CURSOR_CHARS = 64

_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def _integer(value: Any) -> Any:
    """Values of queries and forms are strings."""
    is_number = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value)
    return int(value) if is_number else value


def window_seconds(window: str) -> int | None:
    """`24h` and the like -> seconds; None where it is of another form or too long."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _UNIT_SECONDS[found[2]] if found else 0
    return seconds if 0 < seconds <= MAX_WINDOW_SECONDS else None


def _known_window(window: str) -> str:
    if window_seconds(window) is None:
        raise PydanticCustomError(
            "window", "the window must be 24h, or another number of s, m, h or d up to 7d"
        )
    return window


def _few(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > MAX_METADATA:
        raise PydanticCustomError("metadata", f"at most {MAX_METADATA} pairs are allowed")
    return metadata


Cursor = Annotated[str, Field(min_length=1, max_length=MAX_CURSOR_CHARS)]
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    AfterValidator(_few),
]


class Expiry(WireModel):
    """Counted from the creation of the file."""

    anchor: Literal["created_at"]
    seconds: Annotated[
        int, BeforeValidator(_integer), Field(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)
    ]


_EXPIRY_SCHEMA = {
    "type": "object",
    "required": ["anchor", "seconds"],
    "properties": {
        "anchor": {"const": "created_at"},
        "seconds": {
            "type": "integer",
            "minimum": MIN_EXPIRY_SECONDS,
            "maximum": MAX_EXPIRY_SECONDS,
        },
    },
}


class UploadFields(WireModel):
    """The fields beside the file; `expires_after[seconds]` stands for a nested field."""

    purpose: Literal["batch"]
    expires_after: Expiry | None = None


class FileQuery(WireModel):
    """The query of a list of files."""

    after: Cursor | None = None
    limit: Annotated[int, BeforeValidator(_integer), Field(ge=1, le=MAX_FILES_LISTED)] = (
        MAX_FILES_LISTED
    )
    order: Literal["asc", "desc"] = "desc"
    purpose: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class BatchQuery(WireModel):
    """The query of a list of batches."""

    after: Cursor | None = None
    limit: Annotated[int, BeforeValidator(_integer), Field(ge=1, le=MAX_BATCHES_LISTED)] = 20


class BatchBody(WireModel):
    """The body of `POST /v1/batches`. A window other than 24h is our addition."""

    input_file_id: Annotated[str, Field(max_length=128)]
    endpoint: Literal["/v1/chat", "/v1/chat/completions"]
    completion_window: Annotated[str, Field(max_length=16), AfterValidator(_known_window)]
    metadata: Metadata | None = None
    output_expires_after: Annotated[Expiry | None, WithJsonSchema(_EXPIRY_SCHEMA)] = None
