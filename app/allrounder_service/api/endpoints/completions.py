"""POST /v1/chat/completions: OpenAI's chat completions, with a compute budget beside them."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from allrounder_service.api.completion_answers import (
    as_bad_request,
    completion_answer,
    completion_chunks,
)
from allrounder_service.api.completion_wire import Completion
from allrounder_service.api.deps import ChatTenantDep, ServicesDep, submit
from allrounder_service.api.disconnects import await_result
from allrounder_service.api.docs import COMPLETION_PROBLEMS
from allrounder_service.api.drafts import completion_docs, receive_completion
from allrounder_service.api.sse import ChatEvents

api = APIRouter(prefix="/v1", tags=["openai"])


@api.post(
    "/chat/completions",
    response_model=None,
    responses={
        **COMPLETION_PROBLEMS,
        200: {
            "model": Completion,
            "description": "The completion; with `stream`, chunks as server-sent events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra=completion_docs(),
)
async def completions(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Answer a conversation with images within a compute budget, in OpenAI's form.

    The images' `detail` may be `auto` or `high`, which are the same: the model's own resolution;
    what images may cost is said by `budget`. An answer that its deadline cuts short ends with
    `finish_reason` `length`. Values that change nothing are taken, others refused by name.
    """
    with as_bad_request():
        asked = await receive_completion(request, services, tenant=tenant)
    with as_bad_request(asked):
        stream = await submit(request, services, asked.request)
        if asked.stream:
            return ChatEvents(stream, partial(completion_chunks, asked))
        result = await await_result(stream, request.receive)
    return JSONResponse(completion_answer(asked, result))
