"""HTTP/1.1 connections: uvicorn's h11 protocol, with limits against hostile clients."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from allrounder.errors import (
    AllrounderError,
    BadRequest,
    HeadersTooLarge,
    RequestTimedOut,
    TooManyConnections,
)
from allrounder_service.api.middleware import SECURITY_HEADERS
from allrounder_service.api.problems import error_answer


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportLimits:
    """
    Attributes:
        head_seconds: for a whole head to arrive, and for the rest of a refused request.
        stall_seconds: before a connection whose client does not read is aborted.
    """

    max_header_bytes: int
    max_connections: int
    head_seconds: float
    stall_seconds: float = 60.0


def protocol_with(limits: TransportLimits) -> type[asyncio.Protocol]:
    """For uvicorn's `http` option."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


class _Connection(h11.Connection):
    """Refuses large heads, and those that a proxy may parse differently (request smuggling)."""

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=max_header_bytes)
        self._max_header_bytes = max_header_bytes
        self.error_status = BadRequest.status

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
        except h11.RemoteProtocolError as err:
            self.error_status = err.error_status_hint
            raise
        return event

    def _check(self, head: h11.Request) -> None:
        names = [name for name, _ in head.headers]
        num_bytes = len(head.target) + sum(
            len(name) + len(value) + 4 for name, value in head.headers
        )
        if num_bytes > self._max_header_bytes:
            raise h11.RemoteProtocolError("large head", error_status_hint=HeadersTooLarge.status)
        if b"transfer-encoding" in names and (
            b"content-length" in names or head.http_version < b"1.1"
        ):
            raise h11.RemoteProtocolError("the length of the body is ambiguous")


class GuardedProtocol(H11Protocol):
    limits: ClassVar[TransportLimits]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = self._reader = _Connection(self.limits.max_header_bytes)
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(TooManyConnections("the server has too many connections"))
        else:
            self._watch(True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(self.conn.their_state is h11.IDLE or self._is_draining)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A connection that is kept alive has a timer of uvicorn's until its next byte.
        self._watch(self._is_draining)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch(False)
        self._end_stall()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for a request that h11 rejects."""
        if self._reader.error_status == HeadersTooLarge.status:
            self._refuse(HeadersTooLarge("the head of the request is too large"))
        else:
            self._refuse(BadRequest("this is not a valid HTTP request"))

    @property
    def _is_draining(self) -> bool:
        """The answer is sent, the request body is still arriving."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _watch(self, is_due: bool) -> None:
        """Starts the timer when the client has to send something, and stops it once it has."""
        if is_due and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.limits.head_seconds, self._time_out)
        elif not is_due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _time_out(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(RequestTimedOut("the head of the request arrives too slowly"))
        else:
            self.transport.close()

    def _refuse(self, error: AllrounderError) -> None:
        """Sends the error unless an answer has begun, and closes the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_answer(error)
            body = json.dumps(answer.body).encode()
            headers = {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **answer.headers,
                "Connection": "close",
                **SECURITY_HEADERS,
            }
            head = h11.Response(status_code=answer.status, headers=list(headers.items()))
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
