"""One body answered without HTTP, as a line of a batch: the same checks, the same answer."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from allrounder.core import ChatRequest, ChatResult, Priority
from allrounder.errors import InvalidField, NotFound
from allrounder_service.api.answers import chat_answer
from allrounder_service.api.completion_answers import as_bad_request, completion_answer
from allrounder_service.api.deps import Services, require_ready
from allrounder_service.api.drafts import ready_chat, ready_completion
from allrounder_service.api.problems import as_problem, envelope

Fields = Mapping[str, Any]


async def answer_line(
    services: Services, url: str, body: Fields, *, tenant: str, id: str
) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body that `POST url` would have answered; errors are answers too.

    It goes to the engine as a batch request, whatever the body says; a stream is refused.
    Cancelling the caller's task cancels the request. 429 and 503 are worth another try later.

    Args:
        url: one of `LINE_URLS`.
        id: of the answer, the same each time that the line is executed.
    """
    try:
        if url not in LINE_URLS:
            raise NotFound(f"url: lines may go to {', '.join(LINE_URLS)}", param="url")
        require_ready(services.engine)
        return 200, await LINE_URLS[url](services, body, tenant, id)
    except Exception as exc:
        error = as_problem(exc)
        return error.status, dict(envelope(error))


async def _chat(services: Services, body: Fields, tenant: str, id: str) -> dict[str, Any]:
    received = await ready_chat(body, services, id=id, tenant=tenant, arrival=time.monotonic())
    request, result = await _run(services, received.request, stream=received.stream)
    model = services.engine.capabilities().model
    return chat_answer(request, result, model=model, created=int(time.time()))


async def _completion(services: Services, body: Fields, tenant: str, id: str) -> dict[str, Any]:
    arrival = time.monotonic()
    with as_bad_request():
        asked = await ready_completion(body, services, id=id, tenant=tenant, arrival=arrival)
    with as_bad_request(asked):
        request, result = await _run(services, asked.request, stream=asked.stream)
    return completion_answer(replace(asked, request=request), result)


async def _run(
    services: Services, request: ChatRequest, *, stream: bool
) -> tuple[ChatRequest, ChatResult]:
    if stream:
        raise InvalidField("stream: a line of a batch is not streamed", param="stream")
    as_batch = replace(request, priority=Priority.BATCH)
    # A line that was lost may be here twice for a moment: to the engine they are two requests.
    unique = f"{request.id}-{secrets.token_hex(4)}"
    execution = replace(as_batch, id=unique, answer_id=request.id)
    running = await services.engine.submit(execution)
    try:
        return as_batch, await running.result()
    finally:
        running.cancel()


LINE_URLS: Mapping[str, Callable[[Services, Fields, str, str], Awaitable[dict[str, Any]]]] = {
    "/v1/chat": _chat,
    "/v1/chat/completions": _completion,
}
