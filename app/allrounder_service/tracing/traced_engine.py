"""Connects traces with the engine: a facade that wraps it, and an observer of it."""

from __future__ import annotations

from allrounder.core import ChatRequest, ChatResult, Timing
from allrounder.engine.protocols import ChatStream, EngineFacade, Observer
from allrounder.errors import AllrounderError
from allrounder_service.tracing.trace import Trace, current


class TracedObserver:
    """An `Observer` that forwards to another one and to the trace of each request."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._traces: dict[str, Trace] = {}
        self.rejected = observer.rejected
        self.admitted = observer.admitted
        self.first_token = observer.first_token
        self.next_token = observer.next_token

    def follow(self, request: ChatRequest, trace: Trace) -> None:
        self._traces[request.id] = trace

    def forget(self, request: ChatRequest) -> None:
        del self._traces[request.id]

    def preempted(self, request: ChatRequest) -> None:
        self._observer.preempted(request)
        if (trace := self._traces.get(request.id)) is not None:
            trace.preempted()

    def finished(self, request: ChatRequest, result: ChatResult) -> None:
        self._observer.finished(request, result)
        if (trace := self._traces.pop(request.id, None)) is not None:
            trace.ended(result, result.timing)

    def failed(self, request: ChatRequest, error: AllrounderError, *, timing: Timing) -> None:
        self._observer.failed(request, error, timing=timing)
        if (trace := self._traces.pop(request.id, None)) is not None:
            trace.ended(error, timing)


class TracedEngine:
    """An `EngineFacade` that attaches submitted requests to the current trace."""

    def __init__(self, engine: EngineFacade, observer: TracedObserver) -> None:
        self._engine = engine
        self._observer = observer
        self.capabilities = engine.capabilities
        self.status = engine.status

    async def submit(self, request: ChatRequest) -> ChatStream:
        trace = current.get()
        if trace is None:
            return await self._engine.submit(request)
        trace.submitted(request, model=self._model())
        self._observer.follow(request, trace)
        try:
            return await self._engine.submit(request)
        except BaseException as err:
            self._observer.forget(request)
            trace.refused(err if isinstance(err, AllrounderError) else None)
            raise

    def _model(self) -> str | None:
        try:
            return self._engine.capabilities().model
        except AllrounderError:
            return None
