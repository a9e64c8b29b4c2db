"""Request bodies -> plain fields: size caps, content types, JSON and multipart. No field checks."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from allrounder.errors import (
    AllrounderError,
    BodyTooLarge,
    InvalidField,
    MalformedBody,
    UnsupportedBody,
)

IMAGE_FIELD = "image"
TEXT_FIELDS = (IMAGE_FIELD, "question")
MAX_JSON_VALUES = 65_536
MAX_FORM_FILES = 32
MAX_FORM_FIELDS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """`files` are the contents of the uploaded image parts, in order."""

    fields: Mapping[str, Any]
    files: tuple[bytes, ...] = ()


async def read_json(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """A body that must be JSON. Raises as `read_body`."""
    return dict((await read_body(request, max_bytes=max_bytes, forms=False)).fields)


def capped_stream(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces. Raises BodyTooLarge, before reading where the length is declared."""
    return Request(request.scope, _capped(request, max_bytes)).stream()


async def read_body(request: Request, *, max_bytes: int, forms: bool = True) -> Body:
    """The body's fields; multipart bodies only where `forms`.

    Raises UnsupportedBody, BodyTooLarge (before reading where the length is declared),
    MalformedBody, or InvalidField for a form part that cannot be.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedBody("compressed bodies are not supported")
    limited = Request(request.scope, _capped(request, max_bytes))
    if content_type == "application/json":
        return Body(fields=parse_json(await limited.body()))
    if not forms:
        raise UnsupportedBody("the body must be application/json")
    if content_type == "multipart/form-data":
        return await _read_form(limited, max_bytes)
    raise UnsupportedBody("the body must be application/json or multipart/form-data")


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object. NaN and infinities pass, so that the field's own check can name it."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_JSON_VALUES:
        raise MalformedBody("the JSON body holds too many values")
    try:
        body = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except MalformedBody:
        raise
    except (ValueError, RecursionError):
        raise MalformedBody("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise MalformedBody("the body must be a JSON object")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBody("a key of the JSON body is given twice")
    return found


def _capped(request: Request, max_bytes: int) -> Receive:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        _refuse(max_bytes)
    num_bytes = 0

    async def receive() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            _refuse(max_bytes)
        return message

    return receive


def _refuse(max_bytes: int) -> NoReturn:
    raise BodyTooLarge(f"the request body may have at most {max_bytes} bytes")


async def _read_form(request: Request, max_bytes: int) -> Body:
    try:
        async with request.form(
            max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS, max_part_size=max_bytes
        ) as form:
            return await _split_form(form)
    except AllrounderError:
        raise
    except (HTTPException, ValueError, LookupError):
        raise MalformedBody("the body is not valid multipart/form-data") from None


async def _split_form(form: FormData) -> Body:
    fields: dict[str, Any] = {}
    files: list[bytes] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != IMAGE_FIELD:
                raise _wrong_part(name, "only the image field may be a file")
            files.append(await value.read())
        elif name in fields:
            raise _wrong_part(name, "this field is given twice")
        else:
            fields[name] = value if name in TEXT_FIELDS else _parsed(value)
    if files and IMAGE_FIELD in fields:
        raise _wrong_part(IMAGE_FIELD, "give a file or a data URL, not both")
    return Body(fields=fields, files=tuple(files))


def _wrong_part(name: str, text: str) -> InvalidField:
    return InvalidField(f"{name[:128]}: {text}", param=name[:128])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
