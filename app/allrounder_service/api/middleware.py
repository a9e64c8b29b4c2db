"""The ASGI layers around the web app: request ids, access log, traces, slow bodies."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allrounder.errors import RequestTimedOut
from allrounder_service import logs
from allrounder_service.api.intake.api_request import Endpoint
from allrounder_service.api.problems import to_response
from allrounder_service.metrics.engine_metrics import HttpMetrics
from allrounder_service.tracing.trace import CHAT, PLAN, HttpExchange, Tracer, following

logger = logging.getLogger("allrounder.access")

REQUEST_ID_HEADER = "X-Request-Id"
UNMATCHED = "unmatched"
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
CLIENT_GONE = 499
MIN_BYTES_PER_SECOND = 1024
TRACE_ID = "trace_id"
OPERATIONS: Mapping[str, str] = MappingProxyType(
    {Endpoint.CHAT: CHAT, Endpoint.COMPLETIONS: CHAT, Endpoint.PLAN: PLAN}
)
"""What is traced: path -> operation."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=-]")
_MAX_ID_CHARS = 128
_CONTEXT_HEADERS = ("traceparent", "tracestate")


def endpoint_of(scope: Scope) -> str:
    """The path of the route that matched, with its placeholders; "" where none did."""
    return getattr(scope.get("route"), "path", "")


class RequestContext:
    """Gives each request its id, counts and logs its answer, and answers uncaught exceptions.

    Pure ASGI, so that streams and disconnects pass through it untouched.
    """

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _SentAnswer(send, _request_id(scope), scope)
        token = logs.request_id.set(answer.request_id)
        started = time.monotonic()
        try:
            await self._run(scope, receive, answer)
        finally:
            self._record(scope, answer, time.monotonic() - started)
            logs.request_id.reset(token)

    async def _run(self, scope: Scope, receive: Receive, answer: _SentAnswer) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except Exception as exc:
            response = to_response(exc)
            if answer.status is not None:
                raise
            await response(scope, receive, answer.send)

    def _record(self, scope: Scope, answer: _SentAnswer, seconds: float) -> None:
        endpoint = endpoint_of(scope) or UNMATCHED
        status = CLIENT_GONE if answer.status is None else answer.status
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


class _SentAnswer:
    """Records the status and adds our headers."""

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
            metered = self._scope.get("state", {}).get("metered")
            limits = metered.headers() if metered else {}
            for name, value in (SECURITY_HEADERS | limits).items():
                headers[name] = value
        await self._send(message)


class SlowBodies:
    """Ends a request whose body arrives too slowly with a 408.

    Only time spent waiting for the client counts.

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


class RequestTracing:
    """Traces the requests to the model; installed only where tracing is on.

    Pure ASGI: a trace ends when the last byte of its answer has been sent.
    """

    def __init__(self, app: ASGIApp, *, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = OPERATIONS.get(scope["path"]) if scope["type"] == "http" else None
        if operation is None:
            await self._app(scope, receive, send)
            return
        trace = self._tracer.request(operation, _context_headers(scope), id=logs.request_id.get())
        scope[TRACE_ID] = trace.trace_id
        if not trace.is_recorded:
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with following(trace):
            try:
                await self._app(scope, receive, note_status)
            finally:
                trace.exchange = HttpExchange(
                    method=scope["method"],
                    route=endpoint_of(scope) or None,
                    status=status,
                )


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return _UNSAFE.sub("", given[:_MAX_ID_CHARS]) or f"req-{secrets.token_urlsafe(12)}"


def _context_headers(scope: Scope) -> dict[str, list[str]]:
    headers = Headers(scope=scope)
    return {name: found for name in _CONTEXT_HEADERS if (found := headers.getlist(name))}
