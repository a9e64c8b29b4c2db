"""A tracer that exports spans by OTLP over HTTP in the background.

The SDK itself reads `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`,
`OTEL_SPAN_*`, `OTEL_SDK_DISABLED`, `OTEL_TRACES_SAMPLER` where no ratio is set, and all of
`OTEL_EXPORTER_OTLP_*` but the endpoint.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import SpanKind, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from allrounder_service.tracing import spans
from allrounder_service.tracing.trace import CHAT, Headers, Trace

SERVICE = "allrounder"
TRACES_PATH = "/v1/traces"
_UNNAMED_SERVICE = "unknown_service"


class OtelTracer:
    """Implements `Tracer` with its own provider; changes no global state.

    Args:
        endpoint: base address of an OTLP/HTTP receiver, such as `http://localhost:4318`.
        ratio: share of root traces that are sampled; a caller's trace context overrides it. None
            leaves it to `OTEL_TRACES_SAMPLER`, by default all.
    """

    def __init__(self, endpoint: str, *, ratio: float | None, version: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint.rstrip("/") + TRACES_PATH)
        self._provider = TracerProvider(
            None if ratio is None else ParentBased(TraceIdRatioBased(ratio)),
            _resource(version),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVICE, version)
        self._propagator = TraceContextTextMapPropagator()

    def request(self, operation: str, headers: Headers, *, id: str | None) -> Trace:
        parent = self._propagator.extract(headers, Context())
        named: spans.Attributes = {} if id is None else {spans.REQUEST_ID: id}
        return self._begin(operation, SpanKind.SERVER, parent, named)

    def line(self, *, id: str, job: str) -> Trace:
        batch, _, idx = job.partition("/")
        line: spans.Attributes = {
            spans.REQUEST_ID: id,
            spans.BATCH_ID: batch,
            spans.BATCH_LINE: int(idx),
        }
        return self._begin(CHAT, SpanKind.CONSUMER, Context(), line)

    async def stop(self, seconds: float) -> None:
        # A daemon thread: an unresponsive receiver must not delay the exit.
        flushing = threading.Thread(
            target=self._provider.shutdown, name="traces-flush", daemon=True
        )
        flushing.start()
        await asyncio.to_thread(flushing.join, seconds)
        if flushing.is_alive():
            self._exporter.shutdown()

    def _begin(
        self, operation: str, kind: SpanKind, parent: Context, attributes: spans.Attributes
    ) -> Trace:
        fixed = {
            gen_ai.GEN_AI_OPERATION_NAME: operation,
            gen_ai.GEN_AI_PROVIDER_NAME: spans.PROVIDER,
        }
        started_ns = time.time_ns()
        span = self._tracer.start_span(
            operation, parent, kind, {**fixed, **attributes}, start_time=started_ns
        )
        context = span.get_span_context()
        write = partial(spans.write, self._tracer, span, operation=operation, started_ns=started_ns)
        return Trace(
            trace_id=format_trace_id(context.trace_id) if context.is_valid else None,
            on_end=write if span.is_recording() else None,
        )


def _resource(version: str) -> Resource:
    found = Resource.create({SERVICE_VERSION: version})
    if str(found.attributes[SERVICE_NAME]).startswith(_UNNAMED_SERVICE):
        return found.merge(Resource({SERVICE_NAME: SERVICE}))
    return found
