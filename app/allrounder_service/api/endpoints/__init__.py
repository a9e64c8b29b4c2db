"""One file per endpoint; `ENDPOINTS` lists them.

To add one: a file with an `api` router, a line here, an in-memory test with its error cases, and
the regenerated `tests/golden/openapi.json`.
"""

from __future__ import annotations

from fastapi import APIRouter

from allrounder_service.api.endpoints import (
    batches,
    chat,
    completions,
    files,
    health,
    metrics,
    models,
    openapi,
    plan,
    playground,
)

ENDPOINTS: tuple[APIRouter, ...] = (
    chat.api,
    completions.api,
    plan.api,
    models.api,
    files.api,
    batches.api,
    health.api,
    metrics.api,
    openapi.api,
    playground.api,
)

# What a process answers that only works on batch jobs.
WORKER_ENDPOINTS: tuple[APIRouter, ...] = (health.api, metrics.api)
