"""A facade over the fake runner, small enough to be trusted: one task per request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from app.core import Capabilities, ChatRequest, ChatResult, FinishReason, TokenChunk
from app.engine.base import EngineState, EngineStatus, Observer, Prepared, Running
from app.engine.fake import FakeRunner
from app.errors import (
    AllrounderError,
    DeadlineExceeded,
    Draining,
    EngineDead,
    Loading,
    QueueFull,
    RequestCancelled,
)


class FakeStream:
    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.cancelled = False
        self._chunks: asyncio.Queue[TokenChunk | None] = asyncio.Queue()
        self._result: asyncio.Future[ChatResult] = asyncio.get_running_loop().create_future()

    async def chunks(self) -> AsyncIterator[TokenChunk]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        await self.result()

    async def result(self) -> ChatResult:
        return await asyncio.shield(self._result)

    def cancel(self) -> None:
        self.cancelled = self.cancelled or not self._result.done()

    def put(self, chunk: TokenChunk) -> None:
        self._chunks.put_nowait(chunk)

    def end(self, outcome: ChatResult | AllrounderError) -> None:
        if isinstance(outcome, AllrounderError):
            self._result.set_exception(outcome)
            self._result.exception()
        else:
            self._result.set_result(outcome)
        self._chunks.put_nowait(None)


class FakeEngine:
    def __init__(
        self,
        make_runner: Callable[[], FakeRunner],
        *,
        max_running: int,
        max_queue: int,
        observer: Observer,
    ) -> None:
        self._make_runner = make_runner
        self._slots = asyncio.Semaphore(max_running)
        self._max_admitted = max_running + max_queue
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self.runner = FakeRunner()
        self.state = EngineState.LOADING
        self.num_running = self.num_waiting = self.num_steps = 0
        self.streams: list[FakeStream] = []

    async def start(self) -> None:
        try:
            self.runner = self._make_runner()
        except Exception:
            self.state = EngineState.DEAD
            raise
        self.state = EngineState.READY

    async def stop(self, grace_seconds: float) -> None:
        self.state = EngineState.DRAINING
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for stream in self.streams:
            stream.cancel()
        await asyncio.gather(*self._tasks)
        self.state = EngineState.STOPPED

    async def submit(self, request: ChatRequest) -> FakeStream:
        try:
            prepared = self._admit(request)
        except AllrounderError as err:
            self._observer.rejected(err)
            raise
        stream = FakeStream(request)
        self.streams.append(stream)
        self.num_waiting += 1
        task = asyncio.create_task(self._serve(stream, prepared))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def capabilities(self) -> Capabilities:
        return self.runner.capabilities()

    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self.state,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            kv_bytes_held=self.runner.kv_bytes_held(),
            kv_bytes_limit=self.runner.kv_bytes_limit(),
            num_steps=self.num_steps,
        )

    def _admit(self, request: ChatRequest) -> Prepared:
        match self.state:
            case EngineState.LOADING:
                raise Loading("loading")
            case EngineState.DRAINING | EngineState.STOPPED:
                raise Draining("draining")
            case EngineState.DEAD:
                raise EngineDead("dead")
        if self.num_running + self.num_waiting >= self._max_admitted:
            raise QueueFull("the queue is full", retry_after_seconds=2.2)
        return self.runner.prepare(request)

    async def _serve(self, stream: FakeStream, prepared: Prepared) -> None:
        request = stream.request
        async with self._slots:
            self.num_waiting -= 1
            self.num_running += 1
            self._observer.admitted(request, queue_seconds=time.monotonic() - request.arrival)
            try:
                outcome = await self._generate(stream, prepared)
            finally:
                self.num_running -= 1
        if isinstance(outcome, AllrounderError):
            self._observer.failed(request, outcome)
        else:
            self._observer.finished(request, outcome)
        stream.end(outcome)

    async def _generate(
        self, stream: FakeStream, prepared: Prepared
    ) -> ChatResult | AllrounderError:
        (running,) = self.runner.begin([prepared])
        if isinstance(running, AllrounderError):
            return running
        while True:
            if (early := self._early_end(stream, running)) is not None:
                return early
            try:
                outcomes = await asyncio.to_thread(self.runner.step, [running])
            except Exception:
                self.state = EngineState.DEAD
                return EngineDead("the engine has failed")
            self.num_steps += 1
            (outcome,) = outcomes
            if outcome.chunk is not None:
                self._observe(stream.request, running)
                stream.put(outcome.chunk)
            if outcome.error is not None:
                return outcome.error
            if outcome.result is not None:
                return outcome.result

    def _early_end(
        self, stream: FakeStream, running: Running
    ) -> ChatResult | AllrounderError | None:
        deadline = stream.request.deadline
        if stream.cancelled:
            self.runner.release(running)
            return RequestCancelled("the caller went away")
        if deadline is not None and time.monotonic() >= deadline:
            result = self.runner.finish(running, FinishReason.DEADLINE)
            return result if running.num_generated else DeadlineExceeded("the deadline passed")
        return None

    def _observe(self, request: ChatRequest, running: Running) -> None:
        seconds = time.monotonic() - request.arrival
        if running.num_generated == 1:
            self._observer.first_token(request, seconds=seconds)
        else:
            self._observer.next_token(request, seconds=seconds)
