"""The outermost layer of the web app: request id, security headers, access log, last resort."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.api.problems import to_response
from app.api.tracing import TRACE_ID
from app.metrics.stages import HttpMetrics

logger = logging.getLogger("app.access")

REQUEST_ID_HEADER = "X-Request-Id"
UNMATCHED = "unmatched"
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
CLIENT_GONE = 499

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
        exchange = _Exchange(send, _request_id(scope))
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

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self.request_id
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return _UNSAFE.sub("", given[:_MAX_ID_CHARS]) or f"req-{secrets.token_urlsafe(12)}"
