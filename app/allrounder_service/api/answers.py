"""The answers of `/v1/chat` and `/v1/plan`, as they are sent and as OpenAPI shows them.

Only times are rounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from allrounder.answer import (
    PlanUsage,
    Pruning,
    TimingMs,
    Usage,
    plan_usage_of,
    pruning_of,
    timing_of,
    usage_of,
)
from allrounder.core import Capabilities, ChatRequest, ChatResult
from allrounder.engine.protocols import ChatStream
from allrounder_service.api.intake.api_request import ApiRequest


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat"]
    created: int
    model: str
    answer: str
    finish_reason: str
    usage: Usage
    pruning: Pruning
    timing: TimingMs


class PlanAnswer(BaseModel):
    """`flops` are those of the prompt: nothing was generated."""

    id: str
    object: Literal["plan"]
    created: int
    model: str
    usage: PlanUsage
    pruning: Pruning
    timing: TimingMs


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerWriter(ABC):
    """Writes the answer of one request, whole or as the events of a stream.

    Attributes:
        served: the model that answers.
        created: seconds since 1970.
    """

    id_prefix: ClassVar[str]

    asked: ApiRequest
    request: ChatRequest
    served: Capabilities
    created: int

    @property
    def id(self) -> str:
        return self.request.answer_id or self.request.id

    @abstractmethod
    def whole(self, result: ChatResult) -> dict[str, Any]:
        """The JSON object of an answer that is not streamed."""

    async def events(self, stream: ChatStream) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, in order. Raises the request's error."""
        yield self.whole(await stream.result())


class ChatWriter(AnswerWriter):
    id_prefix = "chat"

    def whole(self, result: ChatResult) -> dict[str, Any]:
        answer = ChatAnswer(
            id=self.id,
            object="chat",
            created=self.created,
            model=self.served.model,
            answer=result.answer,
            finish_reason=result.finish_reason,
            usage=usage_of(result),
            pruning=pruning_of(self.request, result),
            timing=timing_of(result.timing),
        )
        return answer.model_dump(exclude_unset=True)

    async def events(self, stream: ChatStream) -> AsyncIterator[dict[str, Any]]:
        """The text as it becomes final, then the answer less its text."""
        async for chunk in stream.chunks():
            if chunk.text:
                yield {"delta": chunk.text}
        answer = self.whole(await stream.result())
        del answer["answer"]
        yield answer


class PlanWriter(AnswerWriter):
    id_prefix = "plan"

    def whole(self, result: ChatResult) -> dict[str, Any]:
        answer = PlanAnswer(
            id=self.id,
            object="plan",
            created=self.created,
            model=self.served.model,
            usage=plan_usage_of(result),
            pruning=pruning_of(self.request, result),
            timing=timing_of(result.timing),
        )
        return answer.model_dump(exclude_unset=True)
