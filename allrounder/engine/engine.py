"""The async facade over one thread that owns the runner, and with it the device.

Callers on the event loop submit and cancel; the thread takes turns. Every admitted request ends
exactly once: result, error or cancellation. Knows the runner by its protocol.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from allrounder.core import Capabilities, ChatRequest, ChatResult, TokenChunk
from allrounder.engine.offline import warm_up
from allrounder.engine.protocols import EngineState, EngineStatus, Observer, Runner
from allrounder.engine.scheduling.driver import Driver
from allrounder.engine.scheduling.request import (
    MAX_STEP_ROWS,
    EngineRequest,
    Event,
    SchedulerLimits,
)
from allrounder.engine.scheduling.scheduler import Scheduler
from allrounder.errors import AllrounderError, Draining, EngineDead, Loading


class QueuedStream:
    """Satisfies `ChatStream`. Made on the event loop; fed through `deliver` on that same loop.

    Args:
        num_prompt: most tokens that the pruned prompt can have.
    """

    def __init__(
        self, request: ChatRequest, on_cancel: Callable[[str], None], *, num_prompt: int = 0
    ) -> None:
        self._request = request
        self._on_cancel = on_cancel
        self._num_tokens = num_prompt
        self._chunks: asyncio.Queue[TokenChunk | None] = asyncio.Queue()
        self._end: asyncio.Future[ChatResult] = asyncio.get_running_loop().create_future()

    @property
    def request(self) -> ChatRequest:
        return self._request

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    async def chunks(self) -> AsyncIterator[TokenChunk]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        await self.result()

    async def result(self) -> ChatResult:
        return await asyncio.shield(self._end)

    def cancel(self) -> None:
        if not self._end.done():
            self._on_cancel(self._request.id)

    def deliver(self, event: Event) -> None:
        if self._end.done():
            return
        if isinstance(event, TokenChunk):
            self._num_tokens += event.num_tokens
            self._chunks.put_nowait(event)
            return
        if isinstance(event, AllrounderError):
            self._end.set_exception(event)
            self._end.exception()
        else:
            num_prompt = event.shape.num_text + event.plan.num_kept
            self._num_tokens = num_prompt + event.num_generated
            self._end.set_result(event)
        self._chunks.put_nowait(None)


logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_LAST_STEP_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """What exists from the moment the model is loaded."""

    runner: Runner
    scheduler: Scheduler
    driver: Driver


class Engine:
    """Satisfies `EngineFacade`. One instance owns one device.

    Args:
        make_runner: loads the model; called on the engine's own thread.
        observer: told of everything worth a metric.
        max_step_rows: rows of one forward pass; a longer prompt is computed in parts.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        *,
        max_running: int,
        max_queue: int,
        observer: Observer,
        max_step_rows: int = MAX_STEP_ROWS,
    ) -> None:
        self._make_runner = make_runner
        self._max_running = max_running
        self._max_queue = max_queue
        self._max_step_rows = max_step_rows
        self._observer = observer
        self._state = EngineState.LOADING
        self._changed = threading.Condition()
        self._abort = False
        self._loaded: _Loaded | None = None
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Load the model and push a warm-up through every stage. Raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name="engine", daemon=True
        )
        self._thread.start()
        await asyncio.shield(loaded)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new requests, finish the admitted ones; past the grace, cancel what is left."""
        with self._changed:
            if self._state is EngineState.READY:
                self._state = EngineState.DRAINING
            self._changed.notify()
        if self._thread is None:
            self._state = EngineState.STOPPED
            return
        await asyncio.to_thread(self._thread.join, grace_seconds)
        with self._changed:
            self._abort = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, _LAST_STEP_SECONDS)

    async def submit(self, request: ChatRequest) -> QueuedStream:
        try:
            return await self._submit(request)
        except AllrounderError as err:
            self._observer.rejected(err)
            raise

    def capabilities(self) -> Capabilities:
        """Of the loaded model, while draining too. Raises Loading or EngineDead before that."""
        if self._state is EngineState.DEAD or self._loaded is None:
            self._refuse_unless_ready()
        assert self._loaded is not None, "a ready engine is loaded"
        return self._loaded.runner.capabilities()

    def status(self) -> EngineStatus:
        loaded = None if self._state is EngineState.DEAD else self._loaded
        cache = loaded.runner.encoder_cache() if loaded else None
        return EngineStatus(
            state=self._state,
            num_running=loaded.scheduler.num_running if loaded else 0,
            num_waiting=loaded.scheduler.num_waiting if loaded else 0,
            num_waiting_for_kv=loaded.scheduler.num_waiting_for_kv if loaded else 0,
            kv_bytes_held=loaded.runner.kv_bytes_held() if loaded else 0,
            kv_bytes_limit=loaded.runner.kv_bytes_limit() if loaded else 0,
            num_steps=loaded.driver.num_steps if loaded else 0,
            encoder_cache_queries=cache.queries if cache else 0,
            encoder_cache_hits=cache.hits if cache else 0,
        )

    async def _submit(self, request: ChatRequest) -> QueuedStream:
        self._refuse_unless_ready()
        assert self._loaded is not None, "a ready engine is loaded"
        runner, driver = self._loaded.runner, self._loaded.driver
        with self._changed:
            self._loaded.scheduler.check_room(request.priority)
        prepared = await asyncio.to_thread(runner.prepare, request)
        stream = QueuedStream(request, self._cancel, num_prompt=prepared.demand.num_rows)
        with self._changed:
            self._refuse_unless_ready()
            driver.add(EngineRequest(prepared=prepared, deliver=stream.deliver))
            self._changed.notify()
        return stream

    def _refuse_unless_ready(self) -> None:
        match self._state:
            case EngineState.LOADING:
                raise Loading("the model is loading")
            case EngineState.DRAINING | EngineState.STOPPED:
                raise Draining("the server is draining")
            case EngineState.DEAD:
                raise EngineDead("the engine has failed")

    def _cancel(self, request_id: str) -> None:
        with self._changed:
            if self._loaded is not None:
                self._loaded.driver.cancel(request_id)
                self._changed.notify()

    def _run(self, loaded: asyncio.Future[None]) -> None:
        try:
            self._loaded = self._load()
        except BaseException as err:
            self._state = EngineState.DEAD
            self._post(loaded.set_exception, err)
            return
        with self._changed:
            if self._state is EngineState.LOADING:
                self._state = EngineState.READY
        self._post(loaded.set_result, None)
        driver = self._loaded.driver
        try:
            while self._wait_for_work(driver):
                self._take_turn(driver)
        except Exception:
            logger.critical("the engine could not recover", exc_info=True)
            self._state = EngineState.DEAD
        with self._changed:
            if self._state is not EngineState.DEAD:
                self._state = EngineState.STOPPED
        driver.abandon()

    def _load(self) -> _Loaded:
        runner = self._make_runner()
        warm_up(runner)
        scheduler = Scheduler(
            SchedulerLimits(
                max_running=self._max_running,
                max_queue=self._max_queue,
                kv_bytes=runner.kv_bytes_limit(),
                max_step_rows=self._max_step_rows,
            )
        )
        driver = Driver(
            runner, scheduler, observer=self._observer, changed=self._changed, post=self._post
        )
        return _Loaded(runner=runner, scheduler=scheduler, driver=driver)

    def _take_turn(self, driver: Driver) -> None:
        try:
            driver.turn()
        except Exception as err:
            if not driver.recover(err):
                with self._changed:
                    self._state = EngineState.DEAD
                driver.fail_all(EngineDead("the engine has failed"))

    def _wait_for_work(self, driver: Driver) -> bool:
        """Block until there is something to do; False when the thread shall end."""
        with self._changed:
            while not driver.has_work and self._state is EngineState.READY and not self._abort:
                self._changed.wait(_IDLE_SECONDS)
            if self._abort:
                driver.cancel_all()
            return driver.has_work or (self._state is EngineState.READY and not self._abort)

    def _post(self, callback: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)
