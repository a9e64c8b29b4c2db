"""A chat stream as server-sent events: its bodies one by one, then `[DONE]`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allrounder.engine.protocols import ChatStream
from allrounder_service.api.disconnects import unless_disconnected
from allrounder_service.api.problems import as_problem, envelope

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


Bodies = Callable[[ChatStream], AsyncIterator[dict[str, Any]]]
"""What of a stream is sent, in order; its error is raised."""


class ChatEvents(Response):
    """Sends a 200 at once, then events; cancels the stream when the client goes or sending fails.

    An error after the start is one `data: {"error": ...}` event, then the end of the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: ChatStream, bodies: Bodies) -> None:
        self.status_code = 200
        self.background = None
        # No super().__init__: with a body set it would promise a content length.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._stream = stream
        self._bodies = bodies

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
            async for body in self._bodies(self._stream):
                yield _data(body)
        except Exception as exc:
            yield _data(envelope(as_problem(exc)))
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
