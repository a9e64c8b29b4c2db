"""The body of `POST /v1/chat/completions` -> core types, as OpenAI's API has it.

Fields whose value changes nothing are taken; every other value that cannot be served is refused by
name. Knows nothing of HTTP, torch or pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from allrounder.errors import InvalidField
from allrounder.validation import WireModel, only, validate
from allrounder_service.api.intake.chat_body import ChatDraft, ChatLimits, GenerationFields, draft
from allrounder_service.api.intake.messages import (
    MAX_MESSAGES,
    MESSAGES_SCHEMA,
    Label,
    parse_messages,
)

MAX_TOP_LOGPROBS = 20


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


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionDraft:
    """A checked body whose images are still encoded.

    Attributes:
        model: who is asked; still to be compared with what is served.
        max_tokens_field: under which of its two names the caller set the answer's length.
    """

    model: str
    chat: ChatDraft
    include_usage: bool
    max_tokens_field: str = "max_tokens"


def parse_completion(body: Mapping[str, Any], limits: ChatLimits) -> CompletionDraft:
    """Check every field. Raises typed errors with `param`."""
    wire = validate(CompletionBody, body)
    talk = parse_messages(wire.messages, max_image_bytes=limits.max_image_bytes)
    chat = draft(
        _with_max_tokens(wire, limits),
        limits,
        images=talk.images,
        question=talk.question,
        messages=talk.messages,
    )
    sampling = replace(chat.sampling, top_logprobs=_top_logprobs(wire))
    is_newer = wire.max_completion_tokens is not None
    return CompletionDraft(
        model=wire.model,
        chat=replace(chat, sampling=sampling),
        include_usage=_includes_usage(wire),
        max_tokens_field="max_completion_tokens" if is_newer else "max_tokens",
    )


def _with_max_tokens(wire: CompletionBody, limits: ChatLimits) -> CompletionBody:
    """The newer name's value under the older one."""
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


def _wrong(param: str, text: str) -> InvalidField:
    return InvalidField(f"{param}: {text}", param=param)
