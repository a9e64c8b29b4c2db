"""One road from a body to a request for the engine: of chat, plan, completions and batch lines."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from allrounder.core import ChatRequest
from allrounder.errors import InvalidField, ModelNotFound
from allrounder_service.api.bodies import read_body
from allrounder_service.api.completion_answers import Asked
from allrounder_service.api.deps import Services, require_admission
from allrounder_service.api.docs import BODY_MEANINGS
from allrounder_service.api.intake.chat_body import ChatBody, parse_chat
from allrounder_service.api.intake.completion_body import CompletionBody, parse_completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A request ready for the engine, and how its answer is wanted."""

    request: ChatRequest
    stream: bool


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_urlsafe(18)}"


async def receive_chat(
    request: Request, services: Services, *, tenant: str, plan_only: bool = False
) -> Received:
    """Read, check and decode. Raises typed errors only; nothing is queued yet."""
    arrival = time.monotonic()
    require_admission(services)
    body = await read_body(request, max_bytes=services.max_body_bytes)
    return await ready_chat(
        body.fields,
        services,
        id=new_id("plan" if plan_only else "chat"),
        tenant=tenant,
        arrival=arrival,
        files=body.files,
        plan_only=plan_only,
    )


async def receive_completion(request: Request, services: Services, *, tenant: str) -> Asked:
    """Read, check and decode. Raises typed errors only; nothing is queued yet."""
    arrival = time.monotonic()
    require_admission(services)
    body = await read_body(request, max_bytes=services.max_body_bytes, forms=False)
    return await ready_completion(
        body.fields, services, id=new_id("chatcmpl"), tenant=tenant, arrival=arrival
    )


async def ready_chat(
    fields: Mapping[str, Any],
    services: Services,
    *,
    id: str,
    tenant: str,
    arrival: float,
    files: Sequence[bytes] = (),
    plan_only: bool = False,
) -> Received:
    """A body of `/v1/chat` or `/v1/plan`; `arrival` is in monotonic seconds."""
    draft = parse_chat(fields, services.limits, files=files)
    if plan_only and draft.stream:
        raise InvalidField("stream: a plan is not streamed", param="stream")
    images = await services.decoder.decode(draft.images)
    ready = draft.to_request(
        id=id, images=images, arrival=arrival, tenant=tenant, plan_only=plan_only
    )
    return Received(request=ready, stream=draft.stream)


async def ready_completion(
    fields: Mapping[str, Any], services: Services, *, id: str, tenant: str, arrival: float
) -> Asked:
    """A body of `/v1/chat/completions`. Raises ModelNotFound unless its model is the served one."""
    draft = parse_completion(fields, services.limits)
    served = services.engine.capabilities()
    if draft.model != served.model:
        raise ModelNotFound(f"the model served here is {served.model!r}", param="model")
    images = await services.decoder.decode(draft.chat.images)
    return Asked(
        request=draft.chat.to_request(id=id, images=images, arrival=arrival, tenant=tenant),
        model=served.model,
        fingerprint=served.fingerprint,
        created=int(time.time()),
        stream=draft.chat.stream,
        include_usage=draft.include_usage,
        max_tokens_field=draft.max_tokens_field,
    )


def body_docs() -> dict[str, Any]:
    """What OpenAPI says of the body; the handlers read it themselves, after the door checks."""
    as_json = ChatBody.model_json_schema()
    for name, meaning in BODY_MEANINGS.items():
        as_json["properties"][name]["description"] = meaning
    as_form = {**as_json, "properties": dict(as_json["properties"])}
    as_form["properties"]["image"] = {"type": "string", "format": "binary", "title": "Image"}
    content = {
        "application/json": {"schema": as_json},
        "multipart/form-data": {"schema": as_form},
    }
    return {"requestBody": {"required": True, "content": content}}


def completion_docs() -> dict[str, Any]:
    content = {"application/json": {"schema": CompletionBody.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
