"""The FastAPI app around the endpoints: exception handlers and middleware."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Lifespan

from allrounder.errors import AllrounderError
from allrounder_service.api.limits import EXPOSED_HEADERS
from allrounder_service.api.middleware import (
    REQUEST_ID_HEADER,
    RequestContext,
    RequestTracing,
    SlowBodies,
    endpoint_of,
)
from allrounder_service.api.problems import to_response
from allrounder_service.metrics.engine_metrics import HttpMetrics
from allrounder_service.settings import Settings
from allrounder_service.tracing.trace import Tracer

# FastAPI's own telemetry could be enabled by the environment, and records what callers wrote.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
PROBLEMS = (AllrounderError, HTTPException, RequestValidationError, ClientDisconnect)


def bare_app(lifespan: Lifespan[FastAPI]) -> FastAPI:
    """Without FastAPI's own pages and description, which `endpoints.pages` serves."""
    return FastAPI(
        title="Allrounder",
        version=own_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )


def add_endpoints(app: FastAPI, endpoints: Sequence[APIRouter]) -> None:
    async def answer_problem(request: Request, exc: Exception) -> Response:
        asked = getattr(request.state, "asked", None)
        return to_response(exc, endpoint=endpoint_of(request.scope), asked=asked)

    for kind in PROBLEMS:
        app.add_exception_handler(kind, answer_problem)
    for api in endpoints:
        app.include_router(api)


def add_middleware(
    app: FastAPI, settings: Settings, http_metrics: HttpMetrics, tracer: Tracer | None
) -> None:
    """Innermost first."""
    if tracer is not None:
        app.add_middleware(RequestTracing, tracer=tracer)
    app.add_middleware(SlowBodies, seconds=settings.slow_client_seconds)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            allow_credentials=False,
            expose_headers=(REQUEST_ID_HEADER, "Retry-After", *EXPOSED_HEADERS),
        )
    app.add_middleware(RequestContext, metrics=http_metrics)


def own_version() -> str:
    try:
        return version("allrounder")
    except PackageNotFoundError:
        return "0"
