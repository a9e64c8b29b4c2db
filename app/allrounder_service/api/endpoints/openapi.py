"""GET /openapi.json: the description that /docs is made of."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from allrounder_service.api.deps import protected
from allrounder_service.api.key_file import Scope

api = APIRouter(include_in_schema=False)


@api.api_route(
    "/openapi.json",
    methods=["GET", "HEAD"],
    response_model=None,
    dependencies=[Depends(protected(Scope.DOCS))],
)
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())
