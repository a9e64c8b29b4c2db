"""The body of `POST /v1/chat/completions`, in the form of OpenAI's API.

Fields whose value changes nothing are accepted; any other unsupported value is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from allrounder.core import Message, Role
from allrounder.errors import InvalidField
from allrounder.validation import WireModel, only, validate
from allrounder_service.api.intake.api_request import (
    MAX_IMAGES,
    ApiRequest,
    ChatLimits,
    Endpoint,
    GenerationFields,
    build_request,
    readable,
)
from allrounder_service.api.intake.images import ImageSource, from_url

MAX_MESSAGES = 256
MAX_PARTS = 512
MAX_TEXT_CHARS = 131_072
MAX_LABEL_CHARS = 512
MAX_TOP_LOGPROBS = 20

ROLES: Mapping[str, Role] = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}

_PARTS: Mapping[Role, tuple[str, ...]] = {
    Role.SYSTEM: ("text",),
    Role.USER: ("text", "image_url"),
    Role.ASSISTANT: ("text", "refusal"),
}

Text = Annotated[str, AfterValidator(readable)]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
"""A string that is accepted and ignored."""


_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "additionalProperties": False,
}
_REFUSAL_PART = {
    "type": "object",
    "required": ["type", "refusal"],
    "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
    "additionalProperties": False,
}
_IMAGE_PART = {
    "type": "object",
    "required": ["type", "image_url"],
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "required": ["url"],
            "properties": {
                "url": {"type": "string", "description": "data:image/...;base64,..."},
                "detail": {"enum": ["auto", "high"], "default": "auto"},
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "description": "Roles system, developer, user and assistant; only a user's may hold images, "
    "only an assistant's refusals.",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {"anyOf": [_TEXT_PART, _IMAGE_PART, _REFUSAL_PART]},
                    },
                    {"type": "null", "description": "of an assistant, beside refusal"},
                ]
            },
            "name": {
                "anyOf": [{"type": "string", "maxLength": MAX_LABEL_CHARS}, {"type": "null"}],
                "description": "Taken; changes nothing.",
            },
            "refusal": {
                "anyOf": [{"type": "string"}, {"type": "null"}],
                "description": "Only of an assistant: what it said instead of an answer.",
            },
        },
    },
}


class StreamOptions(WireModel):
    """`include_usage` asks for one more chunk, with the usage and no choice."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool, only(False)] = False


class CompletionBody(GenerationFields):
    """OpenAI's fields, and of ours `budget`, `explain`, `deadline_ms` and `priority`.

    As everywhere in this service the temperature is 0 unless asked for.
    """

    model: Label
    messages: Annotated[
        list[Any], Field(min_length=1, max_length=MAX_MESSAGES), WithJsonSchema(MESSAGES_SCHEMA)
    ]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stream_options: Annotated[
        dict[str, Any] | None, WithJsonSchema(StreamOptions.model_json_schema())
    ] = None
    n: Annotated[Any, only(1)] = 1

    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: Annotated[dict[Label, Label], Field(max_length=16)] | None = None
    store: bool = False
    service_tier: Annotated[Any, only("auto", "default")] = "auto"
    presence_penalty: Annotated[Any, only(0)] = 0
    frequency_penalty: Annotated[Any, only(0)] = 0
    logit_bias: Annotated[Any, only(None, {})] = None
    tools: Annotated[Any, only(None, [])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = "none"
    parallel_tool_calls: bool = True
    functions: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only("none", "auto")] = "none"
    response_format: Annotated[Any, only({"type": "text"})] = Field(
        default_factory=lambda: {"type": "text"}
    )
    modalities: Annotated[Any, only(["text"])] = Field(default_factory=lambda: ["text"])
    reasoning_effort: Annotated[Any, only("none")] = "none"
    verbosity: Annotated[Any, only("medium")] = "medium"
    audio: Annotated[Any, only(None)] = None
    prediction: Annotated[Any, only(None)] = None
    web_search_options: Annotated[Any, only(None)] = None


def parse_completion(body: Mapping[str, Any], limits: ChatLimits) -> ApiRequest:
    """Check every field. Raises typed errors with `param`."""
    wire = validate(CompletionBody, body)
    conversation = parse_messages(wire.messages, max_image_bytes=limits.max_image_bytes)
    asked = build_request(
        _with_max_tokens(wire, limits),
        limits,
        endpoint=Endpoint.COMPLETIONS,
        images=conversation.images,
        question=conversation.question,
    )
    is_newer = wire.max_completion_tokens is not None
    return replace(
        asked,
        messages=conversation.messages,
        sampling=replace(asked.sampling, top_logprobs=_top_logprobs(wire)),
        model=wire.model,
        include_usage=_includes_usage(wire),
        max_tokens_field="max_completion_tokens" if is_newer else "max_tokens",
    )


def completion_body_docs() -> dict[str, Any]:
    """The request body in OpenAPI."""
    content = {"application/json": {"schema": CompletionBody.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _with_max_tokens(wire: CompletionBody, limits: ChatLimits) -> CompletionBody:
    """`max_completion_tokens` moved to `max_tokens`."""
    if wire.max_completion_tokens is None:
        return wire
    if wire.max_completion_tokens > limits.max_tokens_limit:
        most = limits.max_tokens_limit
        raise _wrong("max_completion_tokens", f"at most {most} are allowed here")
    if wire.max_tokens not in (None, wire.max_completion_tokens):
        raise _wrong("max_tokens", "max_completion_tokens says something else; give one of them")
    return wire.model_copy(update={"max_tokens": wire.max_completion_tokens})


def _top_logprobs(wire: CompletionBody) -> int | None:
    if not wire.logprobs:
        if wire.top_logprobs is not None:
            raise _wrong("top_logprobs", "logprobs must be true")
        return None
    return wire.top_logprobs or 0


def _includes_usage(wire: CompletionBody) -> bool:
    if wire.stream_options is None:
        return False
    if not wire.stream:
        raise _wrong("stream_options", "only a stream has options: stream must be true")
    return validate(StreamOptions, wire.stream_options, prefix="stream_options").include_usage


class _RoleMessage(WireModel):
    role: str
    content: Any
    name: Label | None = None


class _AssistantTurn(_RoleMessage):
    """An assistant's turn as the SDK returns it; the fields of tool calls must be empty."""

    refusal: Text | None = None
    tool_calls: Annotated[Any, only(None, [])] = None
    function_call: Annotated[Any, only(None)] = None
    audio: Annotated[Any, only(None)] = None
    annotations: Annotated[Any, only(None, [])] = None


class _PlainContent(WireModel):
    content: Text


class _TextPart(WireModel):
    type: str
    text: Text


class _RefusalPart(WireModel):
    type: str
    refusal: Text


class _ImagePart(WireModel):
    type: str
    image_url: dict[str, Any]


class _ImageUrl(WireModel):
    """`detail`: `auto` and `high` both mean the model's own resolution. `low` is refused: what an
    image may cost is set by `budget`."""

    url: str
    detail: Annotated[str, only("auto", "high")] = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Checked messages; `images` are still encoded, in the order of the messages."""

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]

    @property
    def question(self) -> str:
        """The texts of the last user message, joined by spaces."""
        for message in reversed(self.messages):
            if message.role is Role.USER:
                return " ".join(part for part in message.parts if part is not None)
        return ""


def parse_messages(given: Sequence[Any], *, max_image_bytes: int) -> Conversation:
    """Raises InvalidField, or what `from_url` raises; `param` is a path: `messages.1.content.0`."""
    images: list[ImageSource] = []
    messages = tuple(
        _message(each, f"messages.{idx}", images, max_image_bytes) for idx, each in enumerate(given)
    )
    if len(images) > MAX_IMAGES:
        raise _wrong("messages", f"at most {MAX_IMAGES} images are allowed")
    parts = [part for message in messages for part in message.parts]
    if len(parts) > MAX_PARTS:
        raise _wrong("messages", f"at most {MAX_PARTS} parts are allowed")
    if sum(len(part) for part in parts if part is not None) > MAX_TEXT_CHARS:
        raise _wrong("messages", f"at most {MAX_TEXT_CHARS} characters are allowed")
    return Conversation(messages=messages, images=tuple(images))


def _message(given: Any, place: str, images: list[ImageSource], max_bytes: int) -> Message:
    if not isinstance(given, Mapping):
        raise _wrong(place, "a message is an object with role and content")
    role = ROLES.get(given["role"]) if isinstance(given.get("role"), str) else None
    if role is None:
        raise _wrong(f"{place}.role", f"the role must be one of {', '.join(ROLES)}")
    if role is Role.ASSISTANT:
        return Message(role=role, parts=_assistant_parts(given, place))
    content = validate(_RoleMessage, given, prefix=place).content
    return Message(role=role, parts=_parts(content, role, place, images, max_bytes))


def _assistant_parts(given: Mapping[str, Any], place: str) -> tuple[str | None, ...]:
    """The texts of an assistant's turn, a refusal included; an empty turn is one empty text."""
    is_empty = given.get("content") is None and "refusal" in given
    wire = validate(_AssistantTurn, {**given, "content": ""} if is_empty else given, prefix=place)
    refusal = () if wire.refusal is None else (wire.refusal,)
    if is_empty:
        return refusal or ("",)
    return (*_parts(wire.content, Role.ASSISTANT, place, [], 0), *refusal)


def _parts(
    content: Any, role: Role, place: str, images: list[ImageSource], max_bytes: int
) -> tuple[str | None, ...]:
    if not isinstance(content, list):
        return (validate(_PlainContent, {"content": content}, prefix=place).content,)
    if not content:
        raise _wrong(f"{place}.content", "there is nothing in this message")
    parts: list[str | None] = []
    for idx, part in enumerate(content):
        at = f"{place}.content.{idx}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            parts.append(validate(_TextPart, part, prefix=at).text)
        elif kind == "refusal" and role is Role.ASSISTANT:
            parts.append(validate(_RefusalPart, part, prefix=at).refusal)
        elif kind == "image_url" and role is Role.USER:
            images.append(_image(part, at, max_bytes))
            parts.append(None)
        else:
            known = " and ".join(_PARTS[role])
            raise _wrong(f"{at}.type", f"parts of a {role} message may be {known}")
    return tuple(parts)


def _image(part: Mapping[str, Any], place: str, max_bytes: int) -> ImageSource:
    place = f"{place}.image_url"
    given = validate(_ImagePart, part, prefix=place.removesuffix(".image_url")).image_url
    wire = validate(_ImageUrl, given, prefix=place)
    return from_url(wire.url, param=f"{place}.url", max_bytes=max_bytes)


def _wrong(param: str, text: str) -> InvalidField:
    return InvalidField(f"{param}: {text}", param=param)
