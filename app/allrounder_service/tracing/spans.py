"""Writes a finished trace as OpenTelemetry spans.

Never records a question, an answer, an image, a key or a tenant.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue

from allrounder.core import ChatRequest, ChatResult, FinishReason, Stage
from allrounder.errors import RequestCancelled
from allrounder_service.tracing.trace import HttpExchange, Trace, intervals

PREFIX = "allrounder"
PROVIDER = "allrounder"
FIRST_TOKEN = "first_token"
PREEMPTED = "preempted"
CANCELLED = f"{PREFIX}.cancelled"
REQUEST_ID = f"{PREFIX}.request.id"
BATCH_ID = f"{PREFIX}.batch.id"
BATCH_LINE = f"{PREFIX}.batch.line"
COMPUTED = f"{PREFIX}.stage.computed_seconds"

Attributes = dict[str, AttributeValue]


def write(tracer: Tracer, span: Span, trace: Trace, *, operation: str, started_ns: int) -> None:
    """Write the stages as children of `span`, which began at `started_ns`, and end it."""

    def at(seconds: float) -> int:
        return started_ns + round((seconds - trace.began) * 1e9)

    if trace.model is not None:
        span.update_name(f"{operation} {trace.model}")
    span.set_attributes(_attributes(trace))
    for seconds in trace.preemptions:
        span.add_event(PREEMPTED, timestamp=at(seconds))
    _mark_end(span, trace)
    ended = trace.closed
    if trace.request is not None and trace.timing is not None:
        arrival = trace.request.arrival
        _write_stages(tracer, span, trace, lambda seconds: at(arrival + seconds))
        # After a disconnect the request ends in the engine only at the end of its step.
        ended = max(ended, arrival + trace.timing.total)
    span.end(at(ended))


def _write_stages(
    tracer: Tracer, span: Span, trace: Trace, after_arrival: Callable[[float], int]
) -> None:
    assert trace.timing is not None, "only admitted requests have stages"
    if Stage.DECODE in (began := trace.timing.began):
        span.add_event(FIRST_TOKEN, timestamp=after_arrival(began[Stage.DECODE]))
    context = set_span_in_context(span)
    for interval in intervals(trace.timing):
        computed = {} if interval.computed is None else {COMPUTED: interval.computed}
        stage = tracer.start_span(
            interval.stage,
            context,
            attributes=computed,
            start_time=after_arrival(interval.began),
        )
        stage.end(after_arrival(interval.ended))


def _mark_end(span: Span, trace: Trace) -> None:
    """The status: an error by its code; a disconnect is not an error."""
    status = None if trace.exchange is None else trace.exchange.status
    if isinstance(trace.error, RequestCancelled):
        span.set_attribute(CANCELLED, True)
        span.set_attribute(gen_ai.GEN_AI_RESPONSE_FINISH_REASONS, (FinishReason.CANCELLED.value,))
    elif trace.error is not None:
        _mark_error(span, trace.error.code)
    elif status is not None and status >= HTTPStatus.BAD_REQUEST:
        _mark_error(span, str(status))


def _mark_error(span: Span, code: str) -> None:
    span.set_attribute(error_attributes.ERROR_TYPE, code)
    span.set_status(Status(StatusCode.ERROR, code))


def _attributes(trace: Trace) -> Attributes:
    found: Attributes = {}
    if trace.exchange is not None:
        found |= _of_exchange(trace.exchange)
    if trace.model is not None:
        found[gen_ai.GEN_AI_REQUEST_MODEL] = trace.model
    if trace.request is not None:
        found |= _of_request(trace.request)
    if trace.result is not None:
        found |= _of_result(trace.result)
        if trace.model is not None:
            found[gen_ai.GEN_AI_RESPONSE_MODEL] = trace.model
    return found


def _of_exchange(exchange: HttpExchange) -> Attributes:
    found: Attributes = {http_attributes.HTTP_REQUEST_METHOD: exchange.method}
    if exchange.route is not None:
        found[http_attributes.HTTP_ROUTE] = exchange.route
    if exchange.status is not None:
        found[http_attributes.HTTP_RESPONSE_STATUS_CODE] = exchange.status
    return found


def _of_request(request: ChatRequest) -> Attributes:
    sampling = request.sampling
    return {
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: sampling.max_tokens,
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
    }


def _of_result(result: ChatResult) -> Attributes:
    plan, cost = result.plan, result.cost
    return {
        gen_ai.GEN_AI_RESPONSE_ID: result.request_id,
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: (result.finish_reason.value,),
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: result.shape.num_text + plan.num_kept,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: result.num_generated,
        f"{PREFIX}.budget.limit": result.budget_limit,
        f"{PREFIX}.strategy": plan.strategy,
        f"{PREFIX}.visual_tokens.kept": plan.num_kept,
        f"{PREFIX}.visual_tokens.total": plan.num_visual,
        f"{PREFIX}.layers.run": plan.num_layers_run,
        f"{PREFIX}.layers.total": len(plan.runs),
        f"{PREFIX}.flops.dense": cost.dense,
        f"{PREFIX}.flops.executed": cost.executed,
        f"{PREFIX}.flops.saved": cost.saved,
    }
