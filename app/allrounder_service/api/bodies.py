"""Reads request bodies: size caps, content types, JSON, multipart forms. Checks no fields."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
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
UPLOAD_FIELD = "file"
MAX_UPLOAD_PARTS = 10
MAX_UPLOAD_FIELD_BYTES = 1024
MAX_PARAM_CHARS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """`files` are the contents of the uploaded image parts, in order."""

    fields: Mapping[str, Any]
    files: tuple[bytes, ...] = ()


async def read_json(request: Request, *, max_bytes: int) -> dict[str, Any]:
    """A body that must be JSON. Raises as `read_body`."""
    return dict((await read_body(request, max_bytes=max_bytes, forms=False)).fields)


def capped_stream(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body in chunks. Raises BodyTooLarge, before reading where the length is declared."""
    return Request(request.scope, _capped(request, max_bytes)).stream()


async def read_body(request: Request, *, max_bytes: int, forms: bool = True) -> Body:
    """The body's fields; multipart bodies only where `forms`.

    Raises UnsupportedBody, BodyTooLarge (before reading where the length is declared),
    MalformedBody, or InvalidField for an invalid form part.
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
    """A JSON object. NaN and infinities pass, so that the check of the field can name it."""
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
        raise _malformed() from None


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
    shown = name[:MAX_PARAM_CHARS] or "body"
    return InvalidField(f"{shown}: {text}", param=shown)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@dataclass(kw_only=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class MultipartUpload:
    """A form with one file, parsed as it arrives: the file is handed on in chunks, never kept.

    Feed it the whole body, then `close` it. Raises UnsupportedBody, MalformedBody, or InvalidField
    naming the part.
    """

    def __init__(self, request: Request) -> None:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedBody("compressed bodies are not supported")
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data":
            raise UnsupportedBody("the body must be multipart/form-data")
        self.fields: dict[str, Any] = {}
        self.filename: str | None = None
        self._part = _Part()
        self._header = [bytearray(), bytearray()]
        self._num_parts = 0
        self._data = bytearray()
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_to_name,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except (KeyError, FormParserError):
            raise _malformed() from None

    def feed(self, chunk: bytes) -> bytes:
        """The next chunk of the body -> the bytes of the file in it, often none."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _malformed() from None
        data = bytes(self._data)
        self._data.clear()
        return data

    def close(self) -> Mapping[str, Any]:
        """The fields, `a[b]` nested in `a`, once the body has ended."""
        if not self._is_complete:
            raise _malformed()
        if self.filename is None:
            raise InvalidField("file: a file is required", param=UPLOAD_FIELD)
        return self.fields

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_UPLOAD_PARTS:
            raise MalformedBody(f"the form has more than {MAX_UPLOAD_PARTS} parts")
        self._part = _Part()

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        self._part.name = _text(options.get(b"name", b""))
        filename = options.get(b"filename")
        if self._part.name != UPLOAD_FIELD:
            if filename is not None:
                raise _wrong_part(self._part.name, f"only the field {UPLOAD_FIELD} may be a file")
            return
        if filename is None:
            raise _wrong_part(UPLOAD_FIELD, "must be a file, with a filename")
        if self.filename is not None:
            raise _wrong_part(UPLOAD_FIELD, "only one file is allowed")
        self.filename = self._part.filename = _text(filename)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == UPLOAD_FIELD:
            self._data += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_UPLOAD_FIELD_BYTES:
            raise _wrong_part(
                self._part.name, f"at most {MAX_UPLOAD_FIELD_BYTES} bytes are allowed"
            )

    def _end_part(self) -> None:
        name = self._part.name
        if name == UPLOAD_FIELD:
            return
        outer, bracket, inner = name.partition("[")
        fields, key = self.fields, outer
        if bracket and inner.endswith("]"):
            fields, key = self.fields.setdefault(outer, {}), inner.removesuffix("]")
        if not isinstance(fields, dict) or key in fields:
            raise _wrong_part(name, "this field is given twice")
        fields[key] = _text(self._part.value)

    def _end(self) -> None:
        self._is_complete = True


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "replace")


def _malformed() -> MalformedBody:
    return MalformedBody("the body is not valid multipart/form-data")
