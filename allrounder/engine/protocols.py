"""The engine's two edges: the runner below it and the stream it hands to callers above it.

Knows nothing of torch; a fake runner and a real one satisfy the same protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from allrounder.core import (
    Capabilities,
    ChatRequest,
    ChatResult,
    FinishReason,
    Timing,
    TokenChunk,
)
from allrounder.engine.scheduling.request import EngineRequest, Prepared, ScheduledRows
from allrounder.errors import AllrounderError

ALL_ROWS = 1 << 62


class EngineState(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    """A snapshot for probes and gauges; `num_steps` moves while the engine lives and has work.

    `num_waiting_for_kv` counts interactive requests held up by memory, not by slots.
    """

    state: EngineState
    num_running: int
    num_waiting: int
    kv_bytes_held: int
    kv_bytes_limit: int
    num_steps: int
    encoder_cache_queries: int = 0
    encoder_cache_hits: int = 0
    num_waiting_for_kv: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one step did for one request: text that became final, an end, or an error."""

    request: EngineRequest
    chunk: TokenChunk | None = None
    result: ChatResult | None = None
    error: AllrounderError | None = None


class DeviceOutOfMemory(Exception):
    """A step did not fit the device; what it had begun is undone, so a smaller one may be tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheCounts:
    """How often encoded images were looked for, and how often they were there."""

    queries: int = 0
    hits: int = 0


class Runner(Protocol):
    """The one owner of the device. `capabilities` and `prepare` may be called on any thread.

    `begin`, `step`, `finish` and `release` never raise for one request's fault: that request gets
    an `Outcome` (or an error in its place) and its neighbours go on. What a step computed is booked
    in the requests themselves.
    """

    def capabilities(self) -> Capabilities: ...

    def prepare(self, request: ChatRequest) -> Prepared:
        """Build the prompt and resolve the budget. Raises typed errors that name the field."""
        ...

    def begin(self, batch: Sequence[EngineRequest]) -> list[AllrounderError | None]:
        """Encode the images in one batch and make each plan; an error where a request failed."""
        ...

    def step(self, work: Sequence[ScheduledRows]) -> list[Outcome]:
        """One forward pass: at most so many prompt rows of those in prefill, a token of the others.

        A request whose prompt is not complete after the step has no outcome. Raises
        DeviceOutOfMemory with every request as it was before.
        """
        ...

    def preempt(self, request: EngineRequest) -> None:
        """Drop its KV cache; its next rows are those of its prompt and answer so far."""
        ...

    def finish(self, request: EngineRequest, reason: FinishReason) -> ChatResult:
        """End a request early with what it has, and release what it holds."""
        ...

    def release(self, request: EngineRequest) -> None:
        """Give back all memory of a request, if it has any; safe to call twice."""
        ...

    def kv_bytes_held(self) -> int: ...

    def kv_bytes_limit(self) -> int: ...

    def encoder_cache(self) -> CacheCounts: ...


class Observer(Protocol):
    """Told of every event worth a metric; called on the engine's thread, must not block."""

    def rejected(self, error: AllrounderError) -> None: ...

    def admitted(self, request: ChatRequest, *, queue_seconds: float) -> None: ...

    def preempted(self, request: ChatRequest) -> None: ...

    def first_token(self, request: ChatRequest, *, seconds: float) -> None: ...

    def next_token(self, request: ChatRequest, *, seconds: float) -> None: ...

    def finished(self, request: ChatRequest, result: ChatResult) -> None: ...

    def failed(self, request: ChatRequest, error: AllrounderError, *, timing: Timing) -> None: ...


class ChatStream(Protocol):
    """One admitted request as its caller sees it: chunks, then exactly one result or error."""

    @property
    def request(self) -> ChatRequest: ...

    @property
    def num_tokens(self) -> int:
        """Of the prompt after pruning, before the end at most so many, and generated so far."""
        ...

    def chunks(self) -> AsyncIterator[TokenChunk]:
        """Text as it becomes final; ends when the request ends, raises its error if it failed."""
        ...

    async def result(self) -> ChatResult:
        """Wait for the end. Raises the request's typed error if it failed."""
        ...

    def cancel(self) -> None:
        """The caller is gone: free everything at the next step. Safe to call at any time."""
        ...


class EngineFacade(Protocol):
    """All that `api` and `jobs` may know of the engine."""

    async def submit(self, request: ChatRequest) -> ChatStream:
        """Validate and queue. Raises at the door: bad field, QueueFull, Draining, EngineDead."""
        ...

    def capabilities(self) -> Capabilities: ...

    def status(self) -> EngineStatus: ...
