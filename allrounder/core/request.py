"""Nouns of a request: what is asked, what is answered, what can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from allrounder.core.budget import BudgetRequest
from allrounder.core.geometry import ImageInput, ModelGeometry, PromptShape, TokenGrid
from allrounder.core.plan import Cost, Plan


class Stage(StrEnum):
    ENCODE = "encode"
    PLAN = "plan"
    PREFILL = "prefill"
    DECODE = "decode"


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        parts: texts, and None where the next of the request's images stands.
    """

    role: Role
    parts: tuple[str | None, ...]

    @property
    def num_images(self) -> int:
        return self.parts.count(None)


def one_question(question: str, *, num_images: int) -> tuple[Message, ...]:
    """The conversation of `POST /v1/chat`: one user message, images first."""
    return (Message(role=Role.USER, parts=(*(None,) * num_images, question)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """`temperature` 0 is greedy; `seed` None draws one.

    Attributes:
        top_logprobs: how many of the likeliest tokens are told beside each token's own
            log-probability; None where no log-probabilities are asked for.
        is_open_ended: `max_tokens` is nobody's wish; it may be cut to what there is room for.
    """

    max_tokens: int = 256
    is_open_ended: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """One admitted-or-refused unit of work.

    Attributes:
        id: of no other request that runs now.
        answer_id: what the answer is called, where that is not `id`: a line of a batch may be
            executed more than once.
        question: the words of the last user message.
        messages: the conversation, where it is more than images and one question after them.
        arrival: monotonic seconds at which the service received it.
        deadline: monotonic seconds past which it ends with what it has.
        plan_only: stop once the plan is final, without generating.
    """

    id: str
    images: tuple[ImageInput, ...]
    question: str
    budget: BudgetRequest
    sampling: SamplingParams = SamplingParams()
    priority: Priority = Priority.INTERACTIVE
    tenant: str = "public"
    arrival: float = 0.0
    deadline: float | None = None
    explain: bool = False
    plan_only: bool = False
    messages: tuple[Message, ...] = ()
    answer_id: str | None = None

    @property
    def conversation(self) -> tuple[Message, ...]:
        return self.messages or one_question(self.question, num_images=len(self.images))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredToken:
    """A token's bytes and its log-probability (nats) in the model's own distribution.

    Attributes:
        top: the likeliest tokens of that step, best first; their own `top` is empty.
    """

    content: bytes
    logprob: float
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChunk:
    """Text that became final in one step; `num_tokens` generated tokens stand behind it.

    Attributes:
        scored: tokens of text that became final, where log-probabilities were asked for.
    """

    text: str
    num_tokens: int = 1
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Seconds spent per stage; `queue` is from arrival to admission.

    Attributes:
        began: seconds after arrival at which each stage began, of those that did; `decode` with
            the first token.
    """

    queue: float = 0.0
    encode: float = 0.0
    plan: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0
    began: Mapping[Stage, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatResult:
    """All that can be said of a finished request; the wire answer is made from it alone."""

    request_id: str
    answer: str
    finish_reason: FinishReason
    shape: PromptShape
    num_generated: int
    plan: Plan
    cost: Cost
    budget_limit: float
    timing: Timing
    grids: tuple[TokenGrid, ...] = ()
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategyInfo:
    """What `GET /v1/models` says of one strategy."""

    name: str
    prunes_tokens: bool
    prunes_layers: bool
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a loaded model can do, for callers that must not touch it.

    Attributes:
        smallest_budget: share of dense prefill that the smallest plan costs on a typical prompt.
        visual_tokens: tokens of one image where the family fixes it, else None.
    """

    model: str
    family: str
    fingerprint: str
    geometry: ModelGeometry
    device: str
    dtype: str
    visual_tokens: int | None
    max_images: int
    router: str | None
    default_strategy: str
    strategies: tuple[StrategyInfo, ...]
    smallest_budget: float
