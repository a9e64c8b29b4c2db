"""The outermost layers of the web app: ids, headers, access log, last resort, slow bodies."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allrounder.errors import RequestTimedOut
from allrounder_service import logs
from allrounder_service.api.problems import to_response
from allrounder_service.api.tracing import TRACE_ID
from allrounder_service.metrics.engine_metrics import HttpMetrics

logger = logging.getLogger("allrounder.access")

REQUEST_ID_HEADER = "X-Request-Id"
UNMATCHED = "unmatched"
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
CLIENT_GONE = 499
MIN_BYTES_PER_SECOND = 1024

_UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=-]")
_MAX_ID_CHARS = 128


class RequestContext:
    """Pure ASGI, so that streams and disconnects pass through it untouched."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(send, _request_id(scope), scope)
        token = logs.request_id.set(exchange.request_id)
        started = time.monotonic()
        try:
            await self._run(scope, receive, exchange)
        finally:
            self._record(scope, exchange, time.monotonic() - started)
            logs.request_id.reset(token)

    async def _run(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except Exception as exc:
            response = to_response(exc)
            if exchange.status is not None:
                raise
            await response(scope, receive, exchange.send)

    def _record(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", UNMATCHED)
        status = CLIENT_GONE if exchange.status is None else exchange.status
        self._metrics.answered(endpoint, status, seconds=seconds)
        traced = {TRACE_ID: scope[TRACE_ID]} if TRACE_ID in scope else {}
        logger.info(
            "answered",
            extra={
                "method": scope["method"],
                "endpoint": endpoint,
                "status": status,
                "seconds": round(seconds, 6),
                **traced,
            },
        )


class _Exchange:
    """Remembers the status sent and adds our headers to the answer's head."""

    def __init__(self, send: Send, request_id: str, scope: Scope) -> None:
        self._send = send
        self._scope = scope
        self.request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self.request_id
            visit = self._scope.get("state", {}).get("visit")
            limits = visit.headers() if visit else {}
            for name, value in (SECURITY_HEADERS | limits).items():
                headers[name] = value
        await self._send(message)


class SlowBodies:
    """Ends a request whose body arrives too slowly: a 408.

    The time in which nobody waited for the client does not count.

    Args:
        seconds: granted beyond a second for every MIN_BYTES_PER_SECOND.
    """

    def __init__(self, app: ASGIApp, *, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        timed = _TimedBody(receive, self._seconds).receive if scope["type"] == "http" else receive
        await self._app(scope, timed, send)


class _TimedBody:
    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._left = seconds
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimedOut("the request body arrives too slowly") from None
        waited = time.monotonic() - started
        self._left += len(message.get("body", b"")) / MIN_BYTES_PER_SECOND - waited
        self._is_complete = not message.get("more_body", False)
        return message


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return _UNSAFE.sub("", given[:_MAX_ID_CHARS]) or f"req-{secrets.token_urlsafe(12)}"
