"""POST /v1/chat: one image question, answered whole or as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from allrounder.engine.protocols import ChatStream
from allrounder_service.api.answers import chat_answer
from allrounder_service.api.deps import ChatTenantDep, ServicesDep, submit
from allrounder_service.api.disconnects import await_result
from allrounder_service.api.docs import CHAT_PROBLEMS
from allrounder_service.api.drafts import body_docs, receive_chat
from allrounder_service.api.sse import ChatEvents
from allrounder_service.api.wire import ChatAnswer

api = APIRouter(prefix="/v1", tags=["chat"])


@api.post(
    "/chat",
    response_model=None,
    responses={
        **CHAT_PROBLEMS,
        200: {
            "model": ChatAnswer,
            "description": "The answer; with `stream`, server-sent events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra=body_docs(),
)
async def chat(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Answer a question about an image within a compute budget."""
    received = await receive_chat(request, services, tenant=tenant)
    stream = await submit(request, services, received.request)
    answer = partial(
        chat_answer,
        received.request,
        model=services.engine.capabilities().model,
        created=int(time.time()),
    )
    if received.stream:
        return ChatEvents(stream, partial(_deltas, answer))
    return JSONResponse(answer(await await_result(stream, request.receive)))


async def _deltas(
    answer: partial[dict[str, Any]], stream: ChatStream
) -> AsyncIterator[dict[str, Any]]:
    """The text as it becomes final, then the answer less its text."""
    async for chunk in stream.chunks():
        if chunk.text:
            yield {"delta": chunk.text}
    whole = answer(await stream.result())
    del whole["answer"]
    yield whole
