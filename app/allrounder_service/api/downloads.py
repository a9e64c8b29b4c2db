"""Sends the bytes of a file in pieces, so that no download is ever whole in memory."""

from __future__ import annotations

import asyncio
import re
from typing import BinaryIO
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 256 * 1024

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class Download(Response):
    """Owns `file`: closes it also when the client goes first."""

    def __init__(self, file: BinaryIO, *, num_bytes: int, filename: str, media_type: str) -> None:
        super().__init__(media_type=media_type)
        self._file = file
        self.headers["Content-Length"] = str(num_bytes)
        self.headers["Content-Disposition"] = _disposition(filename)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._file:
            await send(start)
            while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _disposition(filename: str) -> str:
    """The plain name holds nothing that could end the header or name a path."""
    plain = _UNSAFE.sub("_", filename).lstrip(".") or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
