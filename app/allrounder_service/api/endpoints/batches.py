"""OpenAI's batch API: many requests from one file, answered within a window of time."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from allrounder.errors import InvalidField
from allrounder.validation import validate
from allrounder_service.api.batch_wire import Batch, BatchList, batch_object, list_object
from allrounder_service.api.bodies import read_json
from allrounder_service.api.deps import BatchTenantDep, JobsDep
from allrounder_service.api.intake import batch_bodies as intake
from allrounder_service.api.problems import problems
from allrounder_service.jobs.facade import BatchOrder
from allrounder_service.jobs.redis_reads import PageRequest

api = APIRouter(prefix="/v1", tags=["batches"])

MAX_BODY_BYTES = 64 * 1024
IDEMPOTENCY_HEADER = "Idempotency-Key"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@api.post(
    "/batches",
    response_model=None,
    responses={
        **problems(400, 401, 403, 408, 409, 413, 415, 429, 500, 503),
        200: {"model": Batch},
    },
    openapi_extra={
        "parameters": [
            {
                "name": IDEMPOTENCY_HEADER,
                "in": "header",
                "required": False,
                "description": "1 to 255 printable characters without spaces; the same key with "
                "the same body gives the first batch, for a day.",
                "schema": {"type": "string", "maxLength": 255},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": intake.BatchBody.model_json_schema()}},
        },
    },
)
async def create_batch(request: Request, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """Run every line of an input file; `completion_window` is 24h or any time up to 7d."""
    key = _idempotency_key(request)
    body = validate(intake.BatchBody, await read_json(request, max_bytes=MAX_BODY_BYTES))
    keep = body.output_expires_after
    order = BatchOrder(
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        window_seconds=intake.window_seconds(body.completion_window) or 0,
        metadata=body.metadata,
        keep_files_seconds=keep.seconds if keep else None,
        idempotency_key=key,
    )
    record = await jobs.create_batch(tenant, order)
    return JSONResponse(batch_object(record))


@api.get(
    "/batches",
    response_model=None,
    responses={**problems(400, 401, 403, 429, 500, 503), 200: {"model": BatchList}},
)
async def list_batches(request: Request, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """The batches of this caller, newest first; `after` and `limit` as in OpenAI's API."""
    query = validate(intake.BatchQuery, dict(request.query_params))
    page = await jobs.list_batches(tenant, PageRequest(limit=query.limit, after=query.after or ""))
    data = [batch_object(record) for record in page.items]
    return JSONResponse(list_object(data, has_more=page.has_more))


@api.get(
    "/batches/{batch_id}",
    response_model=None,
    responses={**problems(401, 403, 404, 429, 500, 503), 200: {"model": Batch}},
)
async def get_batch(batch_id: str, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """How far a batch has come."""
    record = await jobs.batch(tenant, batch_id)
    return JSONResponse(batch_object(record))


@api.post(
    "/batches/{batch_id}/cancel",
    response_model=None,
    responses={**problems(401, 403, 404, 409, 429, 500, 503), 200: {"model": Batch}},
)
async def cancel_batch(batch_id: str, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """Start no more lines. What was answered is in the output file, the rest in the error file."""
    record = await jobs.cancel_batch(tenant, batch_id)
    return JSONResponse(batch_object(record))


def _idempotency_key(request: Request) -> str:
    given = request.headers.getlist(IDEMPOTENCY_HEADER)
    if not given:
        return ""
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise InvalidField(
            f"{IDEMPOTENCY_HEADER}: must be 1 to 255 printable characters without spaces",
            param=IDEMPOTENCY_HEADER,
        )
    return given[0]
