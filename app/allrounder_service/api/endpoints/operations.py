"""For operators: the probes /livez (alias /health) and /readyz, and /metrics for Prometheus.

A failing /livez restarts the process, a failing /readyz takes it out of the load balancer.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from allrounder.engine.protocols import EngineState
from allrounder_service.api.deps import ServicesDep, protected, require_ready
from allrounder_service.api.key_file import Scope
from allrounder_service.api.problems import problems

api = APIRouter()


class Health(BaseModel):
    status: Literal["ok"]


_PROBE_DOCS = {**problems(503), 200: {"model": Health}}
_METRICS_GUARDS = [Depends(protected(Scope.METRICS))]


@api.head("/livez", include_in_schema=False)
@api.head("/health", include_in_schema=False)
@api.get("/livez", tags=["health"], response_model=None, responses=_PROBE_DOCS)
@api.get("/health", response_model=None, include_in_schema=False)
async def livez(services: ServicesDep) -> Response:
    """Fails only when nothing but a restart helps: the engine is dead."""
    if services.engine.status().state is EngineState.DEAD:
        require_ready(services.engine)
    return _ok()


@api.head("/readyz", include_in_schema=False)
@api.get("/readyz", tags=["health"], response_model=None, responses=_PROBE_DOCS)
async def readyz(services: ServicesDep) -> Response:
    """Fails while loading, draining, or with a dead engine."""
    require_ready(services.engine)
    return _ok()


@api.head("/metrics", dependencies=_METRICS_GUARDS, include_in_schema=False)
@api.get(
    "/metrics",
    tags=["metrics"],
    response_model=None,
    dependencies=_METRICS_GUARDS,
    responses={
        **problems(401, 403),
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Counters, gauges and histograms under the prefix allrounder_."""
    await services.refresh()
    body, content_type = services.scrape(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def _ok() -> Response:
    return JSONResponse(Health(status="ok").model_dump())
