"""The async facade over one thread that owns the runner, and with it the device.

Callers on the event loop submit and cancel; the thread admits, begins, steps and delivers. Every
admitted request ends exactly once: result, error or cancellation. Knows the runner by its protocol.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from app.core import Capabilities, ChatRequest, ChatResult, FinishReason
from app.engine.base import EngineState, EngineStatus, Observer, Outcome, Runner
from app.engine.job import Job
from app.engine.scheduler import Scheduler, Ticket
from app.engine.stream import QueuedStream
from app.engine.warmup import warm_up
from app.errors import (
    AllrounderError,
    DeadlineExceeded,
    Draining,
    EngineDead,
    InternalError,
    Loading,
    RequestCancelled,
)

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5
_LAST_STEP_SECONDS = 10.0


class Engine:
    """Satisfies `EngineFacade`. One instance owns one device.

    Args:
        make_runner: loads the model; called on the engine's own thread.
        observer: told of everything worth a metric.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        *,
        max_running: int,
        max_queue: int,
        observer: Observer,
    ) -> None:
        self._make_runner = make_runner
        self._max_running = max_running
        self._max_queue = max_queue
        self._observer = observer
        self._state = EngineState.LOADING
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self._abort = False
        self._num_steps = 0
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
        if self._state in (EngineState.LOADING, EngineState.DEAD):
            self._refuse_unless_ready()
        return self._runner.capabilities()

    def status(self) -> EngineStatus:
        ready = self._state not in (EngineState.LOADING, EngineState.DEAD)
        runner = getattr(self, "_runner", None) if ready else None
        return EngineStatus(
            state=self._state,
            num_running=self._scheduler.num_running if runner else 0,
            num_waiting=self._scheduler.num_waiting if runner else 0,
            kv_bytes_held=runner.kv_bytes_held() if runner else 0,
            kv_bytes_limit=runner.kv_bytes_limit() if runner else 0,
            num_steps=self._num_steps,
        )

    async def _submit(self, request: ChatRequest) -> QueuedStream:
        self._refuse_unless_ready()
        with self._changed:
            self._scheduler.check_room()
        prepared = await asyncio.to_thread(self._runner.prepare, request)
        ticket = Ticket(
            id=request.id,
            priority=request.priority,
            kv_bytes=self._runner.kv_bytes_bound(prepared),
            deadline=request.deadline,
        )
        stream = QueuedStream(request, self._cancel)
        with self._changed:
            self._refuse_unless_ready()
            self._scheduler.submit(ticket)
            self._jobs[request.id] = Job(prepared=prepared, stream=stream)
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
            if request_id in self._jobs:
                self._cancelled.add(request_id)
                self._changed.notify()

    def _run(self, loaded: asyncio.Future[None]) -> None:
        try:
            self._runner = self._make_runner()
            warm_up(self._runner)
            self._scheduler = Scheduler(
                max_running=self._max_running,
                max_queue=self._max_queue,
                kv_bytes_limit=self._runner.kv_bytes_limit(),
            )
        except BaseException as err:
            self._state = EngineState.DEAD
            self._call_soon(loaded.set_exception, err)
            return
        with self._changed:
            if self._state is EngineState.LOADING:
                self._state = EngineState.READY
        self._call_soon(loaded.set_result, None)
        try:
            while self._wait_for_work():
                try:
                    self._iterate()
                except Exception as err:
                    self._recover(err)
        except Exception:
            logger.critical("the engine could not recover", exc_info=True)
            self._state = EngineState.DEAD
        self._close()

    def _wait_for_work(self) -> bool:
        """Block until there is something to do; False when the thread shall end."""
        with self._changed:
            while not self._jobs and self._state is EngineState.READY and not self._abort:
                self._changed.wait(_IDLE_SECONDS)
            if self._abort:
                self._cancelled.update(self._jobs)
            return bool(self._jobs) or (self._state is EngineState.READY and not self._abort)

    def _iterate(self) -> None:
        self._end_cancelled()
        self._end_expired()
        self._begin_admitted()
        running = [job.running for job in self._jobs_now() if job.running is not None]
        if running:
            outcomes = self._runner.step(running)
            self._num_steps += 1
            for outcome in outcomes:
                self._deliver(outcome)

    def _jobs_now(self) -> list[Job]:
        with self._changed:
            return list(self._jobs.values())

    def _end_cancelled(self) -> None:
        with self._changed:
            gone = [self._jobs[job_id] for job_id in self._cancelled if job_id in self._jobs]
            self._cancelled.clear()
        for job in gone:
            self._end(job, RequestCancelled("the request was cancelled"))

    def _end_expired(self) -> None:
        with self._changed:
            expired = [self._jobs[t.id] for t in self._scheduler.expired(time.monotonic())]
        for job in expired:
            if job.running is not None and job.running.num_generated:
                self._end(job, self._runner.finish(job.running, FinishReason.DEADLINE))
            else:
                self._end(job, DeadlineExceeded("the deadline passed before the first token"))

    def _begin_admitted(self) -> None:
        now = time.monotonic()
        with self._changed:
            jobs = [self._jobs[ticket.id] for ticket in self._scheduler.admit()]
        if not jobs:
            return
        for job in jobs:
            job.admitted_at = now
            self._observer.admitted(job.request, queue_seconds=now - job.request.arrival)
        begun = self._runner.begin([job.prepared for job in jobs])
        for job, entry in zip(jobs, begun, strict=True):
            if isinstance(entry, AllrounderError):
                self._end(job, entry)
            else:
                job.running = entry

    def _deliver(self, outcome: Outcome) -> None:
        job = self._jobs[outcome.request_id]
        if outcome.chunk is not None:
            self._observe_token(job)
            self._call_soon(job.stream.deliver, outcome.chunk)
        if outcome.error is not None:
            self._end(job, outcome.error)
        elif outcome.result is not None:
            self._end(job, outcome.result)

    def _observe_token(self, job: Job) -> None:
        now = time.monotonic()
        if job.last_token_at is None:
            self._observer.first_token(job.request, seconds=now - job.request.arrival)
        else:
            self._observer.next_token(job.request, seconds=now - job.last_token_at)
        job.last_token_at = now

    def _end(self, job: Job, end: ChatResult | AllrounderError) -> None:
        """The one place where a request ends: memory, slot, metrics and stream together."""
        served = time.monotonic() - job.admitted_at if isinstance(end, ChatResult) else None
        with self._changed:
            self._scheduler.release(job.request.id, service_seconds=served)
            del self._jobs[job.request.id]
        try:
            if job.running is not None:
                self._runner.release(job.running)
            if isinstance(end, ChatResult):
                self._observer.finished(job.request, end)
            else:
                self._observer.failed(job.request, end)
        finally:
            self._call_soon(job.stream.deliver, end)

    def _close(self) -> None:
        """The thread ends: whatever ended it, nobody is left waiting."""
        with self._changed:
            if self._state is not EngineState.DEAD:
                self._state = EngineState.STOPPED
            left = list(self._jobs.values())
            self._jobs.clear()
        for job in left:
            self._call_soon(job.stream.deliver, EngineDead("the engine has ended"))

    def _recover(self, err: Exception) -> None:
        """Fail what was on the device; go on if the runner still works, else say it is dead."""
        logger.error("a step failed; its requests get an error each", exc_info=err)
        for job in self._jobs_now():
            if job.running is not None or job.admitted_at:
                self._end(job, InternalError("the request failed in the engine"))
        try:
            warm_up(self._runner)
        except Exception:
            logger.critical("the runner does not recover; the engine is dead", exc_info=True)
            with self._changed:
                self._state = EngineState.DEAD
            for job in self._jobs_now():
                self._end(job, EngineDead("the engine has failed"))

    def _call_soon(self, callback: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)
