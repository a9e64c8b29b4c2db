"""GET /metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from allrounder_service.api.deps import ServicesDep, protected
from allrounder_service.api.docs import problems
from allrounder_service.api.key_file import Scope

api = APIRouter(tags=["metrics"])


_GUARDS = [Depends(protected(Scope.METRICS))]


@api.head("/metrics", dependencies=_GUARDS, include_in_schema=False)
@api.get(
    "/metrics",
    response_model=None,
    dependencies=_GUARDS,
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
