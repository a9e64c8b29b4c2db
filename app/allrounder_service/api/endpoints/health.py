"""Probes: /livez (alias /health) restarts a broken process, /readyz routes traffic."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from allrounder.engine.protocols import EngineState
from allrounder_service.api.deps import ServicesDep, require_ready
from allrounder_service.api.docs import problems
from allrounder_service.api.wire import Health

api = APIRouter(tags=["health"])

_DOCS = {**problems(503), 200: {"model": Health}}


@api.head("/livez", include_in_schema=False)
@api.head("/health", include_in_schema=False)
@api.get("/livez", response_model=None, responses=_DOCS)
@api.get("/health", response_model=None, responses=_DOCS, include_in_schema=False)
async def livez(services: ServicesDep) -> Response:
    """Fails only when nothing but a restart helps: the engine is dead."""
    if services.engine.status().state is EngineState.DEAD:
        require_ready(services.engine)
    return _ok()


@api.head("/readyz", include_in_schema=False)
@api.get("/readyz", response_model=None, responses=_DOCS)
async def readyz(services: ServicesDep) -> Response:
    """Fails while loading, draining, or with a dead engine."""
    require_ready(services.engine)
    return _ok()


def _ok() -> Response:
    return JSONResponse(Health(status="ok").model_dump())
