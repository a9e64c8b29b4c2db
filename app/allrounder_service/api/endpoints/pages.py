"""The pages / and /docs with the files of `web/`, and the API's description at /openapi.json."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from allrounder.errors import NotFound
from allrounder_service.api.deps import protected
from allrounder_service.api.key_file import Scope

api = APIRouter(include_in_schema=False)

WEB = Path(__file__).parents[2] / "web"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Modules name each other without versions, so a browser asks each time and gets a 304.
    "Cache-Control": "no-cache",
}


@api.api_route("/", methods=["GET", "HEAD"], response_model=None)
def playground(request: Request) -> Response:
    return _file("index.html", request)


@api.api_route("/docs", methods=["GET", "HEAD"], response_model=None)
def reference(request: Request) -> Response:
    return _file("reference.html", request)


@api.api_route("/web/{name:path}", methods=["GET", "HEAD"], response_model=None)
def asset(name: str, request: Request) -> Response:
    return _file(name, request)


@api.api_route(
    "/openapi.json",
    methods=["GET", "HEAD"],
    response_model=None,
    dependencies=[Depends(protected(Scope.DOCS))],
)
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@cache
def _files() -> dict[str, Path]:
    """By name. Only these are served, so that no spelling of a path leaves the folder."""
    return {
        path.relative_to(WEB).as_posix(): path
        for path in WEB.rglob("*")
        if path.suffix in MEDIA_TYPES
    }


def _file(name: str, request: Request) -> Response:
    path = _files().get(name)
    if path is None:
        raise NotFound("there is nothing at this address")
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}
    known = request.headers.get("if-none-match", "")
    if etag in {each.strip().removeprefix("W/") for each in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "Content-Type": MEDIA_TYPES[path.suffix]})
