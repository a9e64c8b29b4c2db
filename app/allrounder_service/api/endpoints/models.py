"""GET /v1/models: what is served here and what it can do."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from allrounder_service.api.answers import model_list
from allrounder_service.api.deps import ServicesDep, TenantDep, require_ready
from allrounder_service.api.docs import problems
from allrounder_service.api.wire import ModelList

api = APIRouter(prefix="/v1", tags=["models"])


@api.head("/models", include_in_schema=False)
@api.get(
    "/models",
    response_model=None,
    responses={**problems(401, 429, 500, 503), 200: {"model": ModelList}},
)
async def models(services: ServicesDep, _tenant: TenantDep) -> Response:
    """The model with its geometry, strategies, router and smallest budget."""
    require_ready(services.engine)
    body = model_list(services.engine.capabilities(), created=services.started)
    return JSONResponse(body)
