"""The body of `POST /v1/chat` and `POST /v1/plan`, as JSON or form fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from allrounder.budget import BUDGET_SCHEMA, parse_budget
from allrounder.core import (
    BudgetRequest,
    ChatRequest,
    ImageInput,
    Message,
    Priority,
    SamplingParams,
)
from allrounder.errors import InvalidField
from allrounder.validation import WireModel, validate
from allrounder_service.api.intake.images import ImageSource, from_file, from_url

MAX_STOPS = 4
MAX_STOP_CHARS = 64
MAX_IMAGES = 16
MAX_DEADLINE_MS = 86_400_000


class Endpoint(StrEnum):
    """The endpoints that take an ApiRequest, by path."""

    CHAT = "/v1/chat"
    PLAN = "/v1/plan"
    COMPLETIONS = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatLimits:
    """The operator's limits and defaults for requests to the model."""

    default_budget: float = 1.0
    max_tokens_default: int = 256
    max_tokens_limit: int = 4096
    max_image_bytes: int = 10 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiRequest:
    """A checked body; its images are still encoded.

    Attributes:
        endpoint: where it was sent, which decides the form of its answer and of its errors.
        messages: the conversation; empty for one question after its images.
        model: the model that the caller named, None where the endpoint has no such field.
        include_usage: a stream ends with a chunk of the usage.
        max_tokens_field: the name under which the caller set the answer's length.
        deadline_seconds: after arrival.
    """

    endpoint: Endpoint
    images: tuple[ImageSource, ...]
    question: str
    budget: BudgetRequest
    sampling: SamplingParams
    messages: tuple[Message, ...] = ()
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    max_tokens_field: str = "max_tokens"
    explain: bool = False
    deadline_seconds: float | None = None
    priority: Priority = Priority.INTERACTIVE

    def to_chat_request(
        self, images: Sequence[ImageInput], *, id: str, arrival: float, tenant: str
    ) -> ChatRequest:
        """The engine's request, with the decoded images; `arrival` is in monotonic seconds."""
        seconds = self.deadline_seconds
        return ChatRequest(
            id=id,
            images=tuple(images),
            question=self.question,
            budget=self.budget,
            sampling=self.sampling,
            priority=self.priority,
            tenant=tenant,
            arrival=arrival,
            deadline=None if seconds is None else arrival + seconds,
            explain=self.explain,
            plan_only=self.endpoint is Endpoint.PLAN,
            messages=self.messages,
        )


def readable(text: str) -> str:
    """Refuses text that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "the text is not valid Unicode") from None
    if "\0" in text:
        raise PydanticCustomError("nul", "the text must not contain the NUL character")
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        {
            "type": "array",
            "maxItems": MAX_STOPS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        },
    ]
}


class GenerationFields(WireModel):
    """The fields that all bodies share: budget, sampling, delivery."""

    budget: Annotated[Any, WithJsonSchema(BUDGET_SCHEMA)] = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[Stop],
        Field(max_length=MAX_STOPS),
        BeforeValidator(_listed),
        WithJsonSchema(_STOP_SCHEMA),
    ] = Field(default_factory=list)
    stream: bool = False
    explain: bool = False
    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = None
    priority: Literal["interactive", "batch"] = "interactive"


def build_request(
    wire: GenerationFields,
    limits: ChatLimits,
    *,
    endpoint: Endpoint,
    images: tuple[ImageSource, ...],
    question: str,
) -> ApiRequest:
    """Raises InvalidField for an impossible budget or length."""
    deadline_ms = wire.deadline_ms
    # Without images only the dense plan exists, which a default below 1 would refuse.
    default_budget = limits.default_budget if images else 1
    return ApiRequest(
        endpoint=endpoint,
        images=images,
        question=question,
        budget=parse_budget(default_budget if wire.budget is None else wire.budget),
        sampling=_sampling(wire, limits),
        stream=wire.stream,
        explain=wire.explain,
        deadline_seconds=None if deadline_ms is None else deadline_ms / 1000,
        priority=Priority(wire.priority),
    )


def _sampling(wire: GenerationFields, limits: ChatLimits) -> SamplingParams:
    most = limits.max_tokens_limit
    max_tokens = wire.max_tokens or min(limits.max_tokens_default, most)
    if max_tokens > most:
        raise InvalidField(f"max_tokens: at most {most} are allowed here", param="max_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        is_open_ended=wire.max_tokens is None,
        temperature=wire.temperature,
        top_p=wire.top_p,
        seed=wire.seed,
        stop=tuple(wire.stop),
    )


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
