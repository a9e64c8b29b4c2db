"""A request to the model from its body to its answer: parse, decode, submit, write.

The same path for all of `Endpoint` and for the lines of a batch.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allrounder.core import ChatRequest, Priority
from allrounder.errors import InvalidField, ModelNotFound, NotFound
from allrounder_service.api.answers import AnswerWriter, ChatWriter, PlanWriter
from allrounder_service.api.bodies import Body, read_body
from allrounder_service.api.completion_answers import CompletionWriter
from allrounder_service.api.deps import Services, require_admission, require_ready
from allrounder_service.api.intake.api_request import ApiRequest, ChatLimits, Endpoint, parse_chat
from allrounder_service.api.intake.completion_body import parse_completion
from allrounder_service.api.limits import MeteredRequest
from allrounder_service.api.problems import error_answer
from allrounder_service.api.responses import EventStream, await_result

WRITERS: Mapping[Endpoint, type[AnswerWriter]] = MappingProxyType(
    {
        Endpoint.CHAT: ChatWriter,
        Endpoint.PLAN: PlanWriter,
        Endpoint.COMPLETIONS: CompletionWriter,
    }
)
LINE_ENDPOINTS = (Endpoint.CHAT, Endpoint.COMPLETIONS)


async def respond(
    http: Request, services: Services, endpoint: Endpoint, *, tenant: str
) -> Response:
    """Raises typed errors until the answer has begun."""
    arrival = time.monotonic()
    require_admission(services)
    takes_forms = endpoint is not Endpoint.COMPLETIONS
    body = await read_body(http, max_bytes=services.max_body_bytes, forms=takes_forms)
    asked = http.state.asked = _parse(endpoint, body, services.limits)
    id = f"{WRITERS[endpoint].id_prefix}-{secrets.token_urlsafe(18)}"
    request = await _decode(asked, services, id=id, tenant=tenant, arrival=arrival)
    writer = _writer(asked, request, services)
    stream = await services.engine.submit(request)
    if not request.plan_only:
        metered: MeteredRequest = http.state.metered
        metered.charge(stream)
    if asked.stream:
        return EventStream(stream, writer)
    return JSONResponse(writer.whole(await await_result(stream, http.receive)))


async def answer_line(
    services: Services, url: str, body: Mapping[str, Any], *, tenant: str, id: str
) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body that `POST url` would have answered; errors are answers too.

    It goes to the engine at batch priority, whatever the body says; a stream is refused.
    Cancelling the caller's task cancels the request. 429 and 503 are worth another try later.

    Args:
        url: one of `LINE_ENDPOINTS`.
        id: of the answer, the same each time that the line is executed.
    """
    asked = None
    try:
        if url not in LINE_ENDPOINTS:
            raise NotFound(f"url: lines may go to {', '.join(LINE_ENDPOINTS)}", param="url")
        require_ready(services.engine)
        arrival = time.monotonic()
        asked = _parse(Endpoint(url), Body(fields=body), services.limits)
        if asked.stream:
            raise InvalidField("stream: a line of a batch is not streamed", param="stream")
        # A line whose lease was lost may be running here still: the engine needs another id.
        unique = f"{id}-{secrets.token_hex(4)}"
        request = await _decode(asked, services, id=unique, tenant=tenant, arrival=arrival)
        request = replace(request, answer_id=id, priority=Priority.BATCH)
        writer = _writer(asked, request, services)
        stream = await services.engine.submit(request)
        try:
            return 200, writer.whole(await stream.result())
        finally:
            stream.cancel()
    except Exception as exc:
        error = error_answer(exc, endpoint=url, asked=asked)
        return error.status, error.body


def _parse(endpoint: Endpoint, body: Body, limits: ChatLimits) -> ApiRequest:
    if endpoint is Endpoint.COMPLETIONS:
        return parse_completion(body.fields, limits)
    return parse_chat(body.fields, limits, files=body.files, endpoint=endpoint)


async def _decode(
    asked: ApiRequest, services: Services, *, id: str, tenant: str, arrival: float
) -> ChatRequest:
    """Raises ModelNotFound, or what is wrong with an image."""
    served = services.engine.capabilities().model
    if asked.model not in (None, served):
        raise ModelNotFound(f"the model served here is {served!r}", param="model")
    images = await services.decoder.decode(asked.images)
    return asked.to_chat_request(images, id=id, arrival=arrival, tenant=tenant)


def _writer(asked: ApiRequest, request: ChatRequest, services: Services) -> AnswerWriter:
    return WRITERS[asked.endpoint](
        asked=asked,
        request=request,
        served=services.engine.capabilities(),
        created=int(time.time()),
    )
