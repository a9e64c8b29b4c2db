"""What is known of one traced request, and how it is found from wherever it happens."""

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
    """The HTTP side of a request; `status` is None where nothing was sent."""

    method: str
    route: str | None
    status: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A stage in seconds after the request's arrival.

    Attributes:
        computed: seconds that its own steps took, waits between them left out; None where the
            whole interval was spent.
    """

    stage: str
    began: float
    ended: float
    computed: float | None = None


class Trace:
    """Facts of one request. Ends once its caller's side and the engine's have both ended.

    `preempted` and `ended` belong to the engine's thread, all else to the event loop.

    Args:
        trace_id: 32 hexadecimal digits; None where there is none.
        on_end: given the trace, on whichever thread comes last; what it raises is logged.
            None where the trace is not recorded.
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
        """What was submitted was not admitted."""
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
        """Nothing more is sent to the caller."""
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
                # On the engine's thread it would end every other request as well.
                logger.exception("a trace could not be written")


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request at hand, where it is recorded."""


@contextmanager
def following(trace: Trace) -> Iterator[None]:
    """`trace`, if it is recorded, is the current one, and closes with the block."""
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
    """Tell the current trace, if there is one, how its request ends."""
    if (trace := current.get()) is not None:
        trace.failed(error)


class Tracer(Protocol):
    """Begins traces. Nothing that it does blocks its caller."""

    def request(self, operation: str, headers: Headers, *, id: str | None) -> Trace:
        """One that came over HTTP; goes on with the trace that its headers name."""
        ...

    def line(self, *, id: str, job: str) -> Trace:
        """One line of a batch, `job` being `<batch>/<line>`; the root of a trace of its own."""
        ...

    async def stop(self, seconds: float) -> None:
        """Send what is not yet sent, for `seconds` at most."""
        ...


def intervals(timing: Timing) -> Iterator[Interval]:
    """The stages that a request reached, in order; they do not overlap."""
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
