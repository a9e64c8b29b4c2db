"""The state of one request in the engine, and what the scheduler asks of a step. No torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

from allrounder.core import (
    ChatRequest,
    ChatResult,
    Priority,
    PromptShape,
    Stage,
    Timing,
    TokenChunk,
)
from allrounder.errors import AllrounderError

KV_LOOKAHEAD_TOKENS = 32
MAX_STEP_ROWS = 2048
MAX_ENCODED_TOKENS = 8192

Event = TokenChunk | ChatResult | AllrounderError
"""What a caller is sent: text as it becomes final, then exactly one result or error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What computing one request takes, known before it begins.

    Attributes:
        num_rows: prompt rows that enter the decoder, at most: a plan made later may need fewer.
        num_encoded: visual tokens to encode, before pruning.
        splittable: whether chunked prefill is possible; not where a strategy looks on the way.
        kv_prompt_bytes: most KV cache that the prompt can hold, room for growth included.
        kv_token_bytes: KV cache of each generated token.
        layer_signature: equal for requests that probably run the same layers.
    """

    num_rows: int
    num_encoded: int = 0
    splittable: bool = True
    kv_prompt_bytes: int = 0
    kv_token_bytes: int = 0
    layer_signature: Hashable = None

    def kv_bytes(self, num_generated: int) -> int:
        """Most bytes of KV cache held once `num_generated` tokens have been generated."""
        return self.kv_prompt_bytes + num_generated * self.kv_token_bytes

    def most_tokens(self, kv_bytes: int) -> int:
        """How long an answer can become in so many bytes of KV cache; below 1 where none fits."""
        return (kv_bytes - self.kv_prompt_bytes) // max(self.kv_token_bytes, 1)


class Prepared(Protocol):
    """A validated request with its prompt built and its budget resolved; owned by the runner."""

    @property
    def request(self) -> ChatRequest: ...
    @property
    def shape(self) -> PromptShape: ...
    @property
    def demand(self) -> Demand: ...


@dataclass(kw_only=True, slots=True)
class StageClock:
    """Seconds of a request's stages; a shared batch counts in full for each of its requests.

    Attributes:
        arrival: of the request, in monotonic seconds, as all times that are handed in.
        admitted_at: when it left the queue for the first time.
        last_token_at: when its newest token was delivered.
        began: seconds after arrival at which each stage began.
    """

    arrival: float
    admitted_at: float | None = None
    last_token_at: float | None = None
    encode: float = 0.0
    plan: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    began: dict[Stage, float] = field(default_factory=dict)

    def enters(self, stage: Stage, now: float) -> None:
        """A stage begins, unless it has begun before. The queue ends where encoding begins."""
        self.began.setdefault(stage, max(now - self.arrival, 0.0))

    def timing(self, now: float) -> Timing:
        """Of the stages so far."""
        waited = (now if self.admitted_at is None else self.admitted_at) - self.arrival
        return Timing(
            queue=self.began.get(Stage.ENCODE, waited),
            encode=self.encode,
            plan=self.plan,
            prefill=self.prefill,
            decode=self.decode,
            total=now - self.arrival,
            began=dict(self.began),
        )


@dataclass(kw_only=True, slots=True, eq=False)
class EngineRequest:
    """One request between its admission to the queue and its end; the engine's thread owns it.

    The scheduler sets what concerns the queue, the runner what has been computed.

    Attributes:
        deliver: hands an event to the caller; called on the caller's event loop.
        turn: order of submission; kept by a preempted request.
        admission: order of the latest admission to the running set.
        passes: how often a younger request with another layer signature went first.
        num_rows: prompt rows of its plan; until there is one, the most that there can be.
        num_computed: of these, and of `num_recomputed`, rows that went through the decoder.
        num_recomputed: generated tokens whose rows a preemption dropped; they follow the prompt.
        token_ids: generated so far.
        sequence: the runner's tensors of it; None before it begins.
    """

    prepared: Prepared
    deliver: Callable[[Event], object] = lambda _: None
    turn: int = 0
    admission: int = 0
    passes: int = 0
    was_preempted: bool = False
    num_rows: int = field(init=False)
    num_computed: int = 0
    num_recomputed: int = 0
    token_ids: list[int] = field(default_factory=list)
    clock: StageClock = field(init=False)
    sequence: Any = None

    def __post_init__(self) -> None:
        self.num_rows = self.prepared.demand.num_rows
        self.clock = StageClock(arrival=self.prepared.request.arrival)

    @property
    def request(self) -> ChatRequest:
        return self.prepared.request

    @property
    def id(self) -> str:
        return self.prepared.request.id

    @property
    def demand(self) -> Demand:
        return self.prepared.demand

    @property
    def max_tokens(self) -> int:
        return self.prepared.request.sampling.max_tokens

    @property
    def deadline(self) -> float | None:
        """Monotonic seconds."""
        return self.prepared.request.deadline

    @property
    def is_batch(self) -> bool:
        return self.prepared.request.priority is Priority.BATCH

    @property
    def is_admitted(self) -> bool:
        """It left the queue once: what goes wrong on the device concerns it."""
        return self.clock.admitted_at is not None

    @property
    def num_generated(self) -> int:
        return len(self.token_ids)

    @property
    def num_pending(self) -> int:
        """Rows to compute before the next token comes; 0 in decode."""
        return self.num_rows + self.num_recomputed - self.num_computed

    @property
    def kv_reserved(self) -> int:
        """Bytes set aside: the prompt, the tokens there are, and some to come."""
        ahead = min(self.num_generated + KV_LOOKAHEAD_TOKENS, self.max_tokens)
        return self.demand.kv_bytes(max(ahead, self.num_generated))

    def completes(self, num_rows: int) -> bool:
        """Whether a step with so many of its rows gives the next token."""
        return self.num_pending <= num_rows

    def computed(self, num_rows: int) -> None:
        """At most so many of the pending rows have been through the decoder."""
        self.num_computed += min(num_rows, self.num_pending)

    def restart(self) -> None:
        """Its KV cache was dropped: prompt and answer so far are computed anew."""
        self.num_computed, self.num_recomputed = 0, self.num_generated


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """What the device can take.

    Attributes:
        max_step_rows: rows of one forward pass; one of each running request always fits.
        max_encoded: unpruned visual tokens encoded between two steps, unless one image has more.
    """

    max_running: int
    max_queue: int
    kv_bytes: int
    max_step_rows: int = MAX_STEP_ROWS
    max_encoded: int = MAX_ENCODED_TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduledRows:
    """One request's part of a step: `num_rows` of its prompt, or one generated token's row."""

    request: EngineRequest
    num_rows: int
