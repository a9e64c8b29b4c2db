"""One road from an HTTP request to a ChatRequest, shared by chat and plan."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from app.api.bodies import read_body
from app.api.deps import Services, require_ready
from app.api.docs import BODY_MEANINGS
from app.core import ChatRequest
from app.errors import InvalidField
from app.intake.requests import ChatBody, parse_chat


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A request ready for the engine, and how its answer is wanted."""

    request: ChatRequest
    stream: bool


async def receive_chat(
    request: Request, services: Services, *, tenant: str, plan_only: bool = False
) -> Received:
    """Read, check and decode. Raises typed errors only; nothing is queued yet."""
    arrival = time.monotonic()
    require_ready(services.engine)
    body = await read_body(request, max_bytes=services.max_body_bytes)
    draft = parse_chat(body.fields, services.limits, files=body.files)
    if plan_only and draft.stream:
        raise InvalidField("stream: a plan is not streamed", param="stream")
    images = await services.decoder.decode(draft.images)
    prefix = "plan" if plan_only else "chat"
    ready = draft.to_request(
        id=f"{prefix}-{secrets.token_urlsafe(18)}",
        images=images,
        arrival=arrival,
        tenant=tenant,
        plan_only=plan_only,
    )
    return Received(request=ready, stream=draft.stream)


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
