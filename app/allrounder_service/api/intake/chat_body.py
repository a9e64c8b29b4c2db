"""The chat body, as JSON or form fields -> core types. Knows nothing of HTTP, torch or pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from allrounder_service.api.intake.image_sources import ImageSource, from_file, from_url

MAX_QUESTION_CHARS = 8192
MAX_STOPS = 4
MAX_STOP_CHARS = 64
MAX_IMAGES = 16
MAX_DEADLINE_MS = 86_400_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatLimits:
    """What the operator allows and what is taken where the caller is silent."""

    default_budget: float = 1.0
    max_tokens_default: int = 256
    max_tokens_limit: int = 4096
    max_image_bytes: int = 10 * 2**20


def readable(text: str) -> str:
    """Text that a tokenizer can take."""
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
    """How an answer is made, whatever the question's form."""

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


class ChatBody(GenerationFields):
    """The fields of `POST /v1/chat` and `POST /v1/plan`."""

    question: Annotated[
        str, Field(min_length=1, max_length=MAX_QUESTION_CHARS), AfterValidator(readable)
    ]
    image: str | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatDraft:
    """A checked body whose images are still encoded."""

    images: tuple[ImageSource, ...]
    question: str
    budget: BudgetRequest
    sampling: SamplingParams
    stream: bool
    explain: bool
    deadline_seconds: float | None
    priority: Priority
    messages: tuple[Message, ...] = ()

    def to_request(
        self,
        *,
        id: str,
        images: tuple[ImageInput, ...],
        arrival: float,
        tenant: str = "public",
        plan_only: bool = False,
    ) -> ChatRequest:
        """`arrival` is in monotonic seconds; the deadline counts from it."""
        seconds = self.deadline_seconds
        return ChatRequest(
            id=id,
            images=images,
            question=self.question,
            budget=self.budget,
            sampling=self.sampling,
            priority=self.priority,
            tenant=tenant,
            arrival=arrival,
            deadline=None if seconds is None else arrival + seconds,
            explain=self.explain,
            plan_only=plan_only,
            messages=self.messages,
        )


def parse_chat(
    body: Mapping[str, Any], limits: ChatLimits, *, files: Sequence[bytes] = ()
) -> ChatDraft:
    """Check every field; `files` are uploaded `image` parts. Raises typed errors with `param`."""
    wire = validate(ChatBody, body)
    return draft(wire, limits, images=_images(wire, files, limits), question=wire.question)


def draft(
    wire: GenerationFields,
    limits: ChatLimits,
    *,
    images: tuple[ImageSource, ...],
    question: str,
    messages: tuple[Message, ...] = (),
) -> ChatDraft:
    """Raises InvalidField for a budget or a length that cannot be."""
    deadline_ms = wire.deadline_ms
    default_budget = limits.default_budget if images else 1
    return ChatDraft(
        images=images,
        question=question,
        budget=parse_budget(default_budget if wire.budget is None else wire.budget),
        sampling=_sampling(wire, limits),
        stream=wire.stream,
        explain=wire.explain,
        deadline_seconds=None if deadline_ms is None else deadline_ms / 1000,
        priority=Priority(wire.priority),
        messages=messages,
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
