"""An OTLP/HTTP receiver on a real socket, and what it received as plain spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, kw_only=True)
class Received:
    """One span; times in seconds since the epoch, ids in hexadecimal digits."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent: str
    trace_state: str
    began: float
    ended: float
    attributes: Mapping[str, Any]
    events: Mapping[str, float]
    status: tuple[str, str]
    resource: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Receiver:
    """Collects everything that is posted to it, with headers and bodies as they came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.url = ""

    @property
    def spans(self) -> list[Received]:
        return [span for body in self.bodies for span in _spans(body)]

    @property
    def roots(self) -> list[Received]:
        """The spans of whole requests, in the order of their beginnings."""
        ids = {span.span_id for span in self.spans}
        found = [span for span in self.spans if span.parent not in ids]
        return sorted(found, key=lambda span: span.began)

    @property
    def root(self) -> Received:
        (only,) = self.roots
        return only

    def below(self, parent: Received) -> list[Received]:
        found = [span for span in self.spans if span.parent == parent.span_id]
        return sorted(found, key=lambda span: (span.began, span.ended))


@contextmanager
def receiving(*, hold: threading.Event | None = None) -> Iterator[Receiver]:
    """`hold`: no request is answered before it is set."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.bodies.append(body)
            receiver.headers.append(dict(self.headers))
            receiver.paths.append(self.path)
            if hold is not None:
                hold.wait(60)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield receiver
        finally:
            if hold is not None:
                hold.set()
            server.shutdown()
            thread.join()


def _spans(body: bytes) -> Iterator[Received]:
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    name=span.name,
                    kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    trace_state=span.trace_state,
                    began=span.start_time_unix_nano / 1e9,
                    ended=span.end_time_unix_nano / 1e9,
                    attributes=_values(span.attributes),
                    events={event.name: event.time_unix_nano / 1e9 for event in span.events},
                    status=(
                        span.status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                        span.status.message,
                    ),
                    resource=resource,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
