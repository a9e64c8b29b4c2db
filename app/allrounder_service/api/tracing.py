"""The traces of requests that come over HTTP. Part of the app only where tracing is on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allrounder_service import logs
from allrounder_service.tracing.trace import CHAT, PLAN, Exchange, Tracer, following

OPERATIONS: Mapping[str, str] = MappingProxyType(
    {"/v1/chat": CHAT, "/v1/chat/completions": CHAT, "/v1/plan": PLAN}
)
TRACE_ID = "trace_id"
_CONTEXT_HEADERS = ("traceparent", "tracestate")


class RequestTracing:
    """Pure ASGI: a trace ends when the last byte of its answer has been sent."""

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
                trace.exchange = Exchange(
                    method=scope["method"],
                    route=getattr(scope.get("route"), "path", None),
                    status=status,
                )


def _context_headers(scope: Scope) -> dict[str, list[str]]:
    headers = Headers(scope=scope)
    return {name: found for name in _CONTEXT_HEADERS if (found := headers.getlist(name))}
