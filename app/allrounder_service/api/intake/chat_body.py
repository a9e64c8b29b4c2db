"""The body of `POST /v1/chat` and `POST /v1/plan`, as JSON or form fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from allrounder.errors import InvalidField
from allrounder.validation import validate
from allrounder_service.api.intake.api_request import (
    MAX_IMAGES,
    ApiRequest,
    ChatLimits,
    Endpoint,
    GenerationFields,
    build_request,
    readable,
)
from allrounder_service.api.intake.images import ImageSource, from_file, from_url

MAX_QUESTION_CHARS = 8192

_DESCRIPTIONS = {
    "question": "What is asked, taken as plain text.",
    "image": "A data URL; in a form, a file.",
    "images": "Several data URLs instead of one image.",
    "budget": "The share of the dense model's prompt compute that may be spent, choosing included, "
    "or one of the object forms; 1 prunes nothing.",
    "max_tokens": "The longest answer, in tokens.",
    "temperature": "0 is greedy.",
    "top_p": "Sample among the likeliest tokens with this much probability.",
    "seed": "Makes sampling repeatable.",
    "stop": "Texts that end the answer, up to four; they are left out of it.",
    "stream": "Server-sent events instead of one answer.",
    "explain": "Adds the tokens that were kept and what each layer saw.",
    "deadline_ms": "The answer ends by then with what it has.",
    "priority": "Batch requests wait while interactive ones do.",
}


class ChatBody(GenerationFields):
    """The fields of `POST /v1/chat` and `POST /v1/plan`."""

    question: Annotated[
        str, Field(min_length=1, max_length=MAX_QUESTION_CHARS), AfterValidator(readable)
    ]
    image: str | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] | None = None


def parse_chat(
    body: Mapping[str, Any],
    limits: ChatLimits,
    *,
    files: Sequence[bytes] = (),
    endpoint: Endpoint = Endpoint.CHAT,
) -> ApiRequest:
    """Check every field; `files` are uploaded `image` parts. Raises typed errors with `param`."""
    wire = validate(ChatBody, body)
    images = _images(wire, files, limits)
    asked = build_request(wire, limits, endpoint=endpoint, images=images, question=wire.question)
    if asked.stream and endpoint is Endpoint.PLAN:
        raise InvalidField("stream: a plan is not streamed", param="stream")
    return asked


def chat_body_docs() -> dict[str, Any]:
    """The request body in OpenAPI; handlers read it themselves, after authentication."""
    as_json = ChatBody.model_json_schema()
    for name, description in _DESCRIPTIONS.items():
        as_json["properties"][name]["description"] = description
    as_form = {**as_json, "properties": dict(as_json["properties"])}
    as_form["properties"]["image"] = {"type": "string", "format": "binary", "title": "Image"}
    content = {
        "application/json": {"schema": as_json},
        "multipart/form-data": {"schema": as_form},
    }
    return {"requestBody": {"required": True, "content": content}}


def _images(wire: ChatBody, files: Sequence[bytes], limits: ChatLimits) -> tuple[ImageSource, ...]:
    given = [wire.image is not None, wire.images is not None, bool(files)]
    if sum(given) > 1:
        raise InvalidField("images: give image or images, not both", param="images")
    if not any(given):
        raise InvalidField("image: an image is required", param="image")
    if len(files) > MAX_IMAGES:
        raise InvalidField(f"image: at most {MAX_IMAGES} images are allowed", param="image")
    max_bytes = limits.max_image_bytes
    if files:
        return tuple(from_file(file, param="image", max_bytes=max_bytes) for file in files)
    if wire.image is not None:
        return (from_url(wire.image, param="image", max_bytes=max_bytes),)
    return tuple(
        from_url(url, param=f"images.{idx}", max_bytes=max_bytes)
        for idx, url in enumerate(wire.images or ())
    )
