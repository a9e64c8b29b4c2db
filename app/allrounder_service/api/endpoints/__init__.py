"""The endpoints by subject; `ENDPOINTS` lists their routers.

To add one: a function on an `api` router (a new file and a line here for a new subject), an
in-memory test with its error cases, and the regenerated `tests/golden/openapi.json`.
"""

from __future__ import annotations

from fastapi import APIRouter

from allrounder_service.api.endpoints import batches, chat, files, models, operations, pages

ENDPOINTS: tuple[APIRouter, ...] = (
    chat.api,
    models.api,
    files.api,
    batches.api,
    operations.api,
    pages.api,
)

# A process that only works on batch jobs answers no more than probes and scrapes.
WORKER_ENDPOINTS: tuple[APIRouter, ...] = (operations.api,)
