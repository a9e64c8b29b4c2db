"""multipart/form-data as it arrives: small fields are kept, the one file is handed on in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from allrounder.errors import InvalidParameter, MalformedBody, UnsupportedBody

FILE_FIELD = "file"
MAX_PARTS = 10
MAX_FIELD_BYTES = 1024
MAX_PARAM_CHARS = 128


@dataclass(kw_only=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class UploadForm:
    """The parts of one body. Feed it to its end, then `close` it; `fields` are the small ones.

    Raises: UnsupportedBody, MalformedBody, InvalidParameter naming the part that cannot be.
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
        """The next piece of the body -> what it brings of the file, often nothing."""
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
            raise InvalidParameter("file: a file is required", param=FILE_FIELD)
        return self.fields

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise MalformedBody(f"the form has more than {MAX_PARTS} parts")
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
        if self._part.name != FILE_FIELD:
            if filename is not None:
                raise _wrong(self._part.name, f"only the field {FILE_FIELD} may be a file")
            return
        if filename is None:
            raise _wrong(FILE_FIELD, "must be a file, with a filename")
        if self.filename is not None:
            raise _wrong(FILE_FIELD, "only one file is allowed")
        self.filename = self._part.filename = _text(filename)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == FILE_FIELD:
            self._data += data[start:end]
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            raise _wrong(self._part.name, f"at most {MAX_FIELD_BYTES} bytes are allowed")

    def _end_part(self) -> None:
        name = self._part.name
        if name == FILE_FIELD:
            return
        outer, bracket, inner = name.partition("[")
        fields, key = self.fields, outer
        if bracket and inner.endswith("]"):
            fields, key = self.fields.setdefault(outer, {}), inner.removesuffix("]")
        if not isinstance(fields, dict) or key in fields:
            raise _wrong(name, "this field is given twice")
        fields[key] = _text(self._part.value)

    def _end(self) -> None:
        self._is_complete = True


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "replace")


def _wrong(name: str, text: str) -> InvalidParameter:
    shown = name[:MAX_PARAM_CHARS] or "body"
    return InvalidParameter(f"{shown}: {text}", param=shown)


def _malformed() -> MalformedBody:
    return MalformedBody("the body is not valid multipart/form-data")
