"""GET /: the page in app/web, which talks only to the public API."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

api = APIRouter(include_in_schema=False)

PAGE = Path(__file__).parents[2] / "web" / "index.html"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


@api.get("/", response_model=None)
async def playground() -> Response:
    return FileResponse(PAGE, media_type="text/html", headers=HEADERS)
