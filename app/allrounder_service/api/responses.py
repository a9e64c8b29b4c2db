"""Answers that take long: results, event streams and downloads that end when their client goes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine
from typing import Any, BinaryIO
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allrounder.core import ChatResult
from allrounder.engine.protocols import ChatStream
from allrounder.errors import RequestCancelled
from allrounder_service.api.answers import AnswerWriter
from allrounder_service.api.problems import error_answer

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
DOWNLOAD_CHUNK_BYTES = 256 * 1024

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client is gone. The body must have been read to its end before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(work: Coroutine[Any, Any, Any], receive: Receive) -> bool:
    """Run `work` to its end, or cancel it when the client goes first. True: it ended."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(until_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def await_result(stream: ChatStream, receive: Receive) -> ChatResult:
    """The whole result. Raises the request's error, or RequestCancelled if the client went."""
    results: list[ChatResult] = []

    async def collect() -> None:
        results.append(await stream.result())

    try:
        await unless_disconnected(collect(), receive)
    finally:
        if not results:
            stream.cancel()
    if not results:
        raise RequestCancelled("the client went away")
    return results[0]


class EventStream(Response):
    """Sends a 200 at once, then the answer as server-sent events, then `[DONE]`.

    Cancels the stream when the client disconnects or sending fails.

    An error after the start is one `data: {"error": ...}` event, then the end of the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: ChatStream, writer: AnswerWriter) -> None:
        self.status_code = 200
        self.background = None
        # No super().__init__: with a body set it would promise a content length.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(self._send_all(send), receive)
        finally:
            self._stream.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in with_keep_alive(self._events(), KEEP_ALIVE_SECONDS):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for body in self._writer.events(self._stream):
                yield _data(body)
        except Exception as exc:
            asked = self._writer.asked
            yield _data(error_answer(exc, endpoint=asked.endpoint, asked=asked).body)
        yield DONE


async def with_keep_alive(events: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """`events`, with a comment wherever none came for `seconds`."""
    pending: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            pending = pending or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield KEEP_ALIVE
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)


def _data(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False, allow_nan=False)}\n\n".encode()


class Download(Response):
    """Sends a file in chunks, never whole in memory. Owns `file` and closes it in any case."""

    def __init__(self, file: BinaryIO, *, num_bytes: int, filename: str, media_type: str) -> None:
        super().__init__(media_type=media_type)
        self._file = file
        self.headers["Content-Length"] = str(num_bytes)
        self.headers["Content-Disposition"] = _disposition(filename)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._file:
            await send(start)
            while chunk := await asyncio.to_thread(self._file.read, DOWNLOAD_CHUNK_BYTES):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _disposition(filename: str) -> str:
    """The plain name holds nothing that could end the header or name a path."""
    plain = _UNSAFE.sub("_", filename).lstrip(".") or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
