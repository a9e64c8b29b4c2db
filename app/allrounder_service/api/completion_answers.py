"""The answers of `/v1/chat/completions`, in OpenAI's form, whole or as the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from allrounder.answer import Pruning, TimingMs, pruning_of, timing_of
from allrounder.core import ChatResult, FinishReason, ScoredToken, TokenChunk
from allrounder.engine.protocols import ChatStream
from allrounder_service.api.answers import AnswerWriter

MIN_LOGPROB = -9999.0
"""Sent for a probability of zero, whose logarithm JSON has no number for."""


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


class CompletionChoice(BaseModel):
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
    choices: list[CompletionChoice]
    usage: CompletionUsage
    system_fingerprint: str
    pruning: Pruning
    timing: TimingMs


class CompletionWriter(AnswerWriter):
    id_prefix = "chatcmpl"

    def whole(self, result: ChatResult) -> dict[str, Any]:
        choice = CompletionChoice(
            index=0,
            message=AssistantMessage(role="assistant", content=result.answer),
            logprobs=_logprobs(result.scored) if self._wants_logprobs else None,
            finish_reason=_finish_reason(result),
        )
        pruning = pruning_of(self.request, result)
        answer = Completion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.served.model,
            choices=[choice],
            usage=_usage(result),
            system_fingerprint=self.served.fingerprint,
            pruning=pruning,
            timing=timing_of(result.timing),
        )
        # OpenAI's own fields keep their nulls; those of `pruning` are left out unless asked for.
        return answer.model_dump() | {"pruning": pruning.model_dump(exclude_unset=True)}

    async def events(self, stream: ChatStream) -> AsyncIterator[dict[str, Any]]:
        """The role, the text, the end with `pruning` and `timing`; then the usage if asked for."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        num_chars = num_scored = 0
        async for chunk in stream.chunks():
            num_chars, num_scored = num_chars + len(chunk.text), num_scored + len(chunk.scored)
            if chunk.text or chunk.scored:
                yield self._text_chunk(chunk)
        result = await stream.result()
        # A deadline ends the answer without a step that would emit what was held back.
        rest = TokenChunk(text=result.answer[num_chars:], scored=result.scored[num_scored:])
        if rest.text or rest.scored:
            yield self._text_chunk(rest)
        report = {
            "pruning": pruning_of(self.request, result).model_dump(exclude_unset=True),
            "timing": timing_of(result.timing).model_dump(),
        }
        yield self._chunk({}, finish_reason=_finish_reason(result)) | report
        if self.asked.include_usage:
            yield self._chunk(None) | {"usage": _usage(result).model_dump()} | report

    @property
    def _wants_logprobs(self) -> bool:
        return self.request.sampling.top_logprobs is not None

    def _text_chunk(self, chunk: TokenChunk) -> dict[str, Any]:
        logprobs = _logprobs(chunk.scored).model_dump() if self._wants_logprobs else None
        return self._chunk({"content": chunk.text}, logprobs=logprobs)

    def _chunk(
        self,
        delta: dict[str, Any] | None,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """No choice where `delta` is None."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.served.model,
            "system_fingerprint": self.served.fingerprint,
            "choices": [] if delta is None else [choice],
        }
        return chunk | ({"usage": None} if self.asked.include_usage else {})


def _finish_reason(result: ChatResult) -> Literal["stop", "length"]:
    return "stop" if result.finish_reason is FinishReason.STOP else "length"


def _usage(result: ChatResult) -> CompletionUsage:
    num_text, plan = result.shape.num_text, result.plan
    num_prompt = num_text + plan.num_kept
    return CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=result.num_generated,
        total_tokens=num_prompt + result.num_generated,
        prompt_tokens_details=CompletionTokensDetails(
            text_tokens=num_text,
            image_tokens=plan.num_kept,
            image_tokens_before=plan.num_visual,
            cached_tokens=0,
        ),
    )


def _logprobs(scored: Sequence[ScoredToken]) -> Logprobs:
    return Logprobs(
        content=[
            TokenLogprob(
                **_top_logprob(token).model_dump(), top_logprobs=[*map(_top_logprob, token.top)]
            )
            for token in scored
        ]
    )


def _top_logprob(token: ScoredToken) -> TopLogprob:
    return TopLogprob(
        token=token.content.decode(errors="replace"),
        logprob=max(token.logprob, MIN_LOGPROB),
        bytes=list(token.content),
    )
