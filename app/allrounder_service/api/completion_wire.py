"""OpenAI's shapes of a chat completion, as they stand on the wire and in OpenAPI."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from allrounder.answer import Pruning, TimingMs


class TopLogprob(BaseModel):
    """`bytes` are the token's own; a character may take several tokens."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Of the model's own distribution, whatever temperature and top_p made of it."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """`finish_reason` is `length` for an answer that its deadline cut short, too."""

    index: Literal[0]
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionTokensDetails(BaseModel):
    """`image_tokens` are those kept, of `image_tokens_before`; nothing of a prompt is cached."""

    text_tokens: int
    image_tokens: int
    image_tokens_before: int
    cached_tokens: int


class CompletionUsage(BaseModel):
    """`prompt_tokens` counts what the decoder processed: text and the image tokens kept."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CompletionTokensDetails


class Completion(BaseModel):
    """`system_fingerprint` is that of the weights; `pruning` and `timing` are ours."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str
    pruning: Pruning
    timing: TimingMs
