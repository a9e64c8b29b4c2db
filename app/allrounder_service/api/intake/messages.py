"""The `messages` of a chat completion -> core messages and encoded images, each named by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from allrounder.core import Message, Role
from allrounder.errors import InvalidField
from allrounder.validation import WireModel, only, validate
from allrounder_service.api.intake.chat_body import MAX_IMAGES, readable
from allrounder_service.api.intake.image_sources import ImageSource, from_url

MAX_MESSAGES = 256
MAX_PARTS = 512
MAX_TEXT_CHARS = 131_072
MAX_LABEL_CHARS = 512

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
"""Taken, and changes nothing."""


class _Message(WireModel):
    role: str
    content: Any
    name: Label | None = None


class _Answer(_Message):
    """An assistant's turn as the SDK gives it back; what only tools would fill must be empty."""

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
    """`detail`: `auto` and `high` are one and the same, the model's own resolution. `low` is not
    to be had: what an image may cost is said by `budget`."""

    url: str
    detail: Annotated[str, only("auto", "high")] = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Checked messages; `images` are still encoded, in the order in which they stand."""

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]

    @property
    def question(self) -> str:
        """What the user said last."""
        for message in reversed(self.messages):
            if message.role is Role.USER:
                return " ".join(part for part in message.parts if part is not None)
        return ""


def parse_messages(given: Sequence[Any], *, max_image_bytes: int) -> Conversation:
    """Raises InvalidField, or what `from_url` raises, naming the place: `messages.1.content.0`."""
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
        return Message(role=role, parts=_answer(given, place))
    content = validate(_Message, given, prefix=place).content
    return Message(role=role, parts=_parts(content, role, place, images, max_bytes))


def _answer(given: Mapping[str, Any], place: str) -> tuple[str | None, ...]:
    """What the assistant said, a refusal's text included; nothing is an empty text."""
    said_nothing = given.get("content") is None and "refusal" in given
    wire = validate(_Answer, {**given, "content": ""} if said_nothing else given, prefix=place)
    refusal = () if wire.refusal is None else (wire.refusal,)
    if said_nothing:
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
