"""OpenAI's files API, as far as batches need it: upload, list, read, delete."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from allrounder.validation import validate
from allrounder_service.api.batch_wire import (
    FileDeleted,
    FileList,
    FileObject,
    file_object,
    list_object,
)
from allrounder_service.api.bodies import MultipartUpload, capped_stream
from allrounder_service.api.deps import BatchTenantDep, JobsDep
from allrounder_service.api.intake import batch_bodies as intake
from allrounder_service.api.problems import problems
from allrounder_service.api.responses import Download
from allrounder_service.jobs.facade import Jobs
from allrounder_service.jobs.records import FileRecord
from allrounder_service.jobs.redis_reads import PageRequest

api = APIRouter(prefix="/v1", tags=["files"])

# Boundaries, headers and fields beside the file.
FORM_OVERHEAD_BYTES = 64 * 1024
WRITE_BYTES = 2**20
PROBLEMS = problems(401, 403, 404, 429, 500, 503)


@api.post(
    "/files",
    response_model=None,
    responses={**problems(400, 401, 403, 408, 413, 415, 429, 500, 503), 200: {"model": FileObject}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": ["batch"]},
                            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                            "expires_after[seconds]": {
                                "type": "integer",
                                "minimum": intake.MIN_EXPIRY_SECONDS,
                                "maximum": intake.MAX_EXPIRY_SECONDS,
                            },
                        },
                    }
                }
            },
        }
    },
)
async def upload_file(request: Request, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """Store the input of a batch: JSON Lines, one request a line."""
    return JSONResponse(file_object(await _receive(request, jobs, tenant)))


@api.get(
    "/files",
    response_model=None,
    responses={**problems(400, 401, 403, 429, 500, 503), 200: {"model": FileList}},
)
async def list_files(request: Request, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """The files of this caller; `after`, `limit`, `order` and `purpose` as in OpenAI's API."""
    query = validate(intake.FileQuery, dict(request.query_params))
    wanted = PageRequest(
        limit=query.limit, after=query.after or "", newest_first=query.order == "desc"
    )
    page = await jobs.list_files(tenant, wanted, purpose=query.purpose)
    data = [file_object(record) for record in page.items]
    return JSONResponse(list_object(data, has_more=page.has_more))


@api.get(
    "/files/{file_id}",
    response_model=None,
    responses={**PROBLEMS, 200: {"model": FileObject}},
)
async def get_file(file_id: str, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """What is known of a file."""
    return JSONResponse(file_object(await jobs.file(tenant, file_id)))


@api.get(
    "/files/{file_id}/content",
    response_model=None,
    responses={
        **PROBLEMS,
        200: {
            "description": "The bytes of the file.",
            "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
async def get_file_content(file_id: str, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """The bytes of a file."""
    record = await jobs.file(tenant, file_id)
    return Download(
        await jobs.open_file(record),
        num_bytes=record.bytes,
        filename=record.filename,
        media_type="application/jsonl",
    )


@api.delete(
    "/files/{file_id}",
    response_model=None,
    responses={**PROBLEMS, 200: {"model": FileDeleted}},
)
async def delete_file(file_id: str, jobs: JobsDep, tenant: BatchTenantDep) -> Response:
    """Forget a file. Batches that were created from it go on."""
    await jobs.delete_file(tenant, file_id)
    return JSONResponse(FileDeleted(id=file_id).model_dump())


async def _receive(request: Request, jobs: Jobs, tenant: str) -> FileRecord:
    form = MultipartUpload(request)
    body = capped_stream(request, jobs.options.max_file_bytes + FORM_OVERHEAD_BYTES)
    upload = await asyncio.to_thread(jobs.upload)
    try:
        pending = bytearray()
        async for chunk in body:
            pending += form.feed(chunk)
            if len(pending) >= WRITE_BYTES:
                await asyncio.to_thread(upload.write, bytes(pending))
                pending.clear()
        fields = validate(intake.UploadFields, form.close())
        await asyncio.to_thread(upload.write, bytes(pending))
        stored = await asyncio.to_thread(upload.commit)
    finally:
        await asyncio.to_thread(upload.discard)
    seconds = fields.expires_after.seconds if fields.expires_after else None
    return await jobs.add_file(tenant, stored, filename=form.filename or "", seconds=seconds)
