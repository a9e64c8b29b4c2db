"""The trace of one request, and the context variable that holds the current one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from allrounder.core import ChatRequest, ChatResult, Stage, Timing
from allrounder.errors import AllrounderError, InternalError, RequestCancelled

logger = logging.getLogger(__name__)

QUEUE = "queue"
CHAT = "chat"
PLAN = "plan"

Headers = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpExchange:
    """Method, route and status of a request; `status` is None if nothing was sent."""

    method: str
    route: str | None
    status: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A stage in seconds after the request's arrival.

    Attributes:
        computed: seconds in its own steps, without waits between them; None if equal to the
            interval.
    """

    stage: str
    began: float
    ended: float
    computed: float | None = None


class Trace:
    """The data of one request. Ends when both the HTTP side and the engine have finished with it.

    `preempted` and `ended` are called on the engine's thread, the rest on the event loop.

    Args:
        trace_id: 32 hexadecimal digits, or None.
        on_end: called with the trace on the thread that ends it; what it raises is logged.
            None if the trace is not sampled.
    """

    def __init__(self, *, trace_id: str | None, on_end: Callable[[Trace], None] | None) -> None:
        self.trace_id = trace_id
        self.began = self.closed = time.monotonic()
        self.exchange: HttpExchange | None = None
        self.request: ChatRequest | None = None
        self.model: str | None = None
        self.result: ChatResult | None = None
        self.timing: Timing | None = None
        self.error: AllrounderError | None = None
        self.preemptions: list[float] = []
        self._on_end = on_end
        self._num_open = 1
        self._lock = threading.Lock()

    @property
    def is_recorded(self) -> bool:
        return self._on_end is not None

    def submitted(self, request: ChatRequest, *, model: str | None) -> None:
        self.request, self.model = request, model
        with self._lock:
            self._num_open += 1

    def refused(self, error: AllrounderError | None = None) -> None:
        """The engine did not admit the request."""
        self.failed(error)
        self._leave()

    def failed(self, error: AllrounderError | None) -> None:
        self.error = error or self.error

    def preempted(self) -> None:
        self.preemptions.append(time.monotonic())

    def ended(self, end: ChatResult | AllrounderError, timing: Timing) -> None:
        self.timing = timing
        if isinstance(end, ChatResult):
            self.result = end
        else:
            self.failed(end)
        self._leave()

    def close(self) -> None:
        """The answer has been sent."""
        self.closed = time.monotonic()
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._num_open -= 1
            is_over = not self._num_open
        if is_over and self._on_end is not None:
            try:
                self._on_end(self)
            except Exception:
                # On the engine's thread an exception would end every other request.
                logger.exception("a trace could not be written")


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the current request, if it is sampled."""


@contextmanager
def following(trace: Trace) -> Iterator[None]:
    """Makes a sampled trace the current one within the block, and closes it at the end."""
    if not trace.is_recorded:
        yield
        return
    token = current.set(trace)
    try:
        yield
    except asyncio.CancelledError:
        trace.failed(RequestCancelled("the request was cancelled"))
        raise
    except Exception:
        trace.failed(InternalError("the request failed"))
        raise
    finally:
        current.reset(token)
        trace.close()


def note_error(error: AllrounderError) -> None:
    """Records the error in the current trace, if there is one."""
    if (trace := current.get()) is not None:
        trace.failed(error)


class Tracer(Protocol):
    """Starts traces. Its methods do not block."""

    def request(self, operation: str, headers: Headers, *, id: str | None) -> Trace:
        """For a request over HTTP; continues the trace of its `traceparent` header."""
        ...

    def line(self, *, id: str, job: str) -> Trace:
        """For a line of a batch, `job` being `<batch>/<line>`; a root trace."""
        ...

    async def stop(self, seconds: float) -> None:
        """Flush the remaining spans, for at most `seconds`."""
        ...


def intervals(timing: Timing) -> Iterator[Interval]:
    """The stages that a request reached, in order and without overlap."""
    began = timing.began
    yield Interval(stage=QUEUE, began=0.0, ended=timing.queue)
    for stage, seconds in ((Stage.ENCODE, timing.encode), (Stage.PLAN, timing.plan)):
        if stage in began:
            yield Interval(stage=stage, began=began[stage], ended=began[stage] + seconds)
    if Stage.PREFILL in began:
        prefilled = began.get(Stage.DECODE, timing.total)
        yield Interval(
            stage=Stage.PREFILL,
            began=began[Stage.PREFILL],
            ended=prefilled,
            computed=timing.prefill,
        )
    if Stage.DECODE in began:
        yield Interval(
            stage=Stage.DECODE,
            began=began[Stage.DECODE],
            ended=timing.total,
            computed=timing.decode,
        )
