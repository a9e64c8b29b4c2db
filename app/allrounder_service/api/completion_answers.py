"""ChatResult -> a chat completion in OpenAI's form, whole or as the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from allrounder.answer import pruning_of, timing_of
from allrounder.core import (
    ChatRequest,
    ChatResult,
    FinishReason,
    ScoredToken,
    TokenChunk,
)
from allrounder.engine.protocols import ChatStream
from allrounder.errors import (
    AllrounderError,
    BadRequest,
    BudgetNotPossible,
    BudgetTooSmall,
    InvalidField,
    InvalidParameter,
)
from allrounder_service.api import completion_wire as wire

LEAST_LOGPROB = -9999.0
"""What stands for a probability of zero, which JSON cannot say."""

_PARAMS = {"question": "messages", "image": "messages", "images": "messages"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A completion that was asked for: what its answer is made from beside the result.

    Attributes:
        max_tokens_field: under which name the caller set the answer's length.
    """

    request: ChatRequest
    model: str
    fingerprint: str
    created: int
    stream: bool
    include_usage: bool
    max_tokens_field: str

    @property
    def wants_logprobs(self) -> bool:
        return self.request.sampling.top_logprobs is not None


def completion_answer(asked: Asked, result: ChatResult) -> dict[str, Any]:
    """The whole answer."""
    choice = wire.Choice(
        index=0,
        message=wire.AssistantMessage(role="assistant", content=result.answer),
        logprobs=_logprobs(result.scored) if asked.wants_logprobs else None,
        finish_reason=_finish_reason(result),
    )
    answer = wire.Completion(
        id=asked.request.id,
        object="chat.completion",
        created=asked.created,
        model=asked.model,
        choices=[choice],
        usage=_usage(result),
        system_fingerprint=asked.fingerprint,
        pruning=pruning_of(asked.request, result),
        timing=timing_of(result.timing),
    )
    return _dumped(answer)


async def completion_chunks(asked: Asked, stream: ChatStream) -> AsyncIterator[dict[str, Any]]:
    """The role, the text, the end with `pruning` and `timing`; then, if asked for, the usage."""
    with as_bad_request(asked):
        yield _chunk(asked, {"role": "assistant", "content": "", "refusal": None})
        num_chars = num_scored = 0
        async for chunk in stream.chunks():
            num_chars, num_scored = num_chars + len(chunk.text), num_scored + len(chunk.scored)
            if chunk.text or chunk.scored:
                yield _text_chunk(asked, chunk)
        result = await stream.result()
        # A deadline ends the answer without a step that would hand out what was held back.
        rest = TokenChunk(text=result.answer[num_chars:], scored=result.scored[num_scored:])
        if rest.text or rest.scored:
            yield _text_chunk(asked, rest)
        report = {
            "pruning": pruning_of(asked.request, result).model_dump(exclude_unset=True),
            "timing": timing_of(result.timing).model_dump(),
        }
        yield _chunk(asked, {}, finish_reason=_finish_reason(result)) | report
        if asked.include_usage:
            usage = _usage(result).model_dump()
            yield _chunk(asked, None) | {"usage": usage} | report


@contextmanager
def as_bad_request(asked: Asked | None = None) -> Iterator[None]:
    """On OpenAI's endpoints every invalid field is a 400.

    What the engine says of a request that was `asked` is named as its caller knows it.
    """
    try:
        yield
    except AllrounderError as err:
        names = {} if asked is None else {**_PARAMS, "max_tokens": asked.max_tokens_field}
        param = names.get(err.param or "", err.param)
        if isinstance(err, InvalidField):
            kind: type[BadRequest] = InvalidParameter
            if isinstance(err, BudgetTooSmall):
                kind = BudgetNotPossible
            raise kind(err.message, param=param) from err
        err.param = param
        raise


def _chunk(
    asked: Asked,
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
        "id": asked.request.id,
        "object": "chat.completion.chunk",
        "created": asked.created,
        "model": asked.model,
        "system_fingerprint": asked.fingerprint,
        "choices": [] if delta is None else [choice],
    }
    return chunk | ({"usage": None} if asked.include_usage else {})


def _text_chunk(asked: Asked, chunk: TokenChunk) -> dict[str, Any]:
    logprobs = _logprobs(chunk.scored).model_dump() if asked.wants_logprobs else None
    return _chunk(asked, {"content": chunk.text}, logprobs=logprobs)


def _finish_reason(result: ChatResult) -> Literal["stop", "length"]:
    return "stop" if result.finish_reason is FinishReason.STOP else "length"


def _usage(result: ChatResult) -> wire.CompletionUsage:
    num_text, plan = result.shape.num_text, result.plan
    num_prompt = num_text + plan.num_kept
    return wire.CompletionUsage(
        prompt_tokens=num_prompt,
        completion_tokens=result.num_generated,
        total_tokens=num_prompt + result.num_generated,
        prompt_tokens_details=wire.CompletionTokensDetails(
            text_tokens=num_text,
            image_tokens=plan.num_kept,
            image_tokens_before=plan.num_visual,
            cached_tokens=0,
        ),
    )


def _logprobs(scored: Sequence[ScoredToken]) -> wire.Logprobs:
    return wire.Logprobs(
        content=[
            wire.TokenLogprob(
                **_top_logprob(token).model_dump(), top_logprobs=[*map(_top_logprob, token.top)]
            )
            for token in scored
        ]
    )


def _top_logprob(token: ScoredToken) -> wire.TopLogprob:
    return wire.TopLogprob(
        token=token.content.decode(errors="replace"),
        logprob=max(token.logprob, LEAST_LOGPROB),
        bytes=list(token.content),
    )


def _dumped(answer: wire.Completion) -> dict[str, Any]:
    """Nothing of `pruning` that was not asked for; the nulls of OpenAI's own fields stay."""
    body = answer.model_dump()
    body["pruning"] = answer.pruning.model_dump(exclude_unset=True)
    return body
