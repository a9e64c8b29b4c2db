"""POST /v1/plan: what a chat request would get, without generating."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from allrounder_service.api.answers import plan_answer
from allrounder_service.api.deps import ChatTenantDep, ServicesDep
from allrounder_service.api.disconnects import await_result
from allrounder_service.api.docs import CHAT_PROBLEMS
from allrounder_service.api.drafts import body_docs, receive_chat
from allrounder_service.api.wire import PlanAnswer

api = APIRouter(prefix="/v1", tags=["chat"])


@api.post(
    "/plan",
    response_model=None,
    responses={**CHAT_PROBLEMS, 200: {"model": PlanAnswer}},
    openapi_extra=body_docs(),
)
async def plan(request: Request, services: ServicesDep, tenant: ChatTenantDep) -> Response:
    """Make the plan of a chat request and tell its cost; the body is that of /v1/chat."""
    received = await receive_chat(request, services, tenant=tenant, plan_only=True)
    stream = await services.engine.submit(received.request)
    result = await await_result(stream, request.receive)
    model = services.engine.capabilities().model
    body = plan_answer(received.request, result, model=model, created=int(time.time()))
    return JSONResponse(body)
