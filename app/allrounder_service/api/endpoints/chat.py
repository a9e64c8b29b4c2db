"""The endpoints that ask the model: our own chat and plan, and OpenAI's chat completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from allrounder_service.api.answers import ChatAnswer, PlanAnswer
from allrounder_service.api.completion_answers import Completion
from allrounder_service.api.deps import ChatTenantDep, ServicesDep
from allrounder_service.api.intake.api_request import Endpoint, chat_body_docs
from allrounder_service.api.intake.completion_body import completion_body_docs
from allrounder_service.api.problems import problems
from allrounder_service.api.serving import respond

api = APIRouter()

_STATUSES = (400, 401, 403, 408, 413, 415, 429, 500, 503, 504)
_EVENT_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


@api.post(
    Endpoint.CHAT,
    tags=["chat"],
    response_model=None,
    responses={
        **problems(*_STATUSES, 422),
        200: {
            "model": ChatAnswer,
            "description": "The answer; with `stream`, server-sent events.",
            "content": _EVENT_STREAM,
        },
    },
    openapi_extra=chat_body_docs(),
)
async def chat(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Answer a question about an image within a compute budget."""
    return await respond(request, services, Endpoint.CHAT, tenant=tenant)


@api.post(
    Endpoint.COMPLETIONS,
    tags=["openai"],
    response_model=None,
    responses={
        **problems(*_STATUSES, 404),
        200: {
            "model": Completion,
            "description": "The completion; with `stream`, chunks as server-sent events.",
            "content": _EVENT_STREAM,
        },
    },
    openapi_extra=completion_body_docs(),
)
async def completions(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Answer a conversation with images within a compute budget, in OpenAI's form.

    The images' `detail` may be `auto` or `high`, which are the same: the model's own resolution;
    what images may cost is said by `budget`. An answer that its deadline cuts short ends with
    `finish_reason` `length`. Values that change nothing are taken, others refused by name.
    """
    return await respond(request, services, Endpoint.COMPLETIONS, tenant=tenant)


@api.post(
    Endpoint.PLAN,
    tags=["chat"],
    response_model=None,
    responses={**problems(*_STATUSES, 422), 200: {"model": PlanAnswer}},
    openapi_extra=chat_body_docs(),
)
async def plan(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Make the plan of a chat request and tell its cost; the body is that of /v1/chat."""
    return await respond(request, services, Endpoint.PLAN, tenant=tenant)
