"""One turn of the engine: end, preempt, admit, step, deliver. Runs on the engine's own thread.

`add`, `cancel` and the counts may be called from other threads; `changed` guards what they share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from threading import Condition

from allrounder.core import ChatResult, FinishReason
from allrounder.engine.offline import warm_up
from allrounder.engine.protocols import DeviceOutOfMemory, Observer, Outcome, Runner
from allrounder.engine.scheduling.request import EngineRequest, ScheduledRows
from allrounder.engine.scheduling.scheduler import Scheduler
from allrounder.errors import (
    AllrounderError,
    DeadlineExceeded,
    EngineDead,
    EngineOutOfMemory,
    InternalError,
    RequestCancelled,
    StepFailed,
)

logger = logging.getLogger(__name__)

Post = Callable[..., None]


class Driver:
    """Holds the requests of one engine; every one that was added ends exactly once.

    Args:
        post: calls a function with arguments on the callers' event loop, soon.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        observer: Observer,
        changed: Condition,
        post: Post,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._observer = observer
        self._changed = changed
        self._post = post
        self._requests: dict[str, EngineRequest] = {}
        self._cancelled: set[str] = set()
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def add(self, request: EngineRequest) -> None:
        """Raises QueueFull, DeadlineExceeded, or InternalError for an id that is here already.

        The caller holds `changed`.
        """
        if request.id in self._requests:
            raise InternalError("a request with this id is in the engine already")
        self._scheduler.submit(request, time.monotonic())
        self._requests[request.id] = request

    def cancel(self, request_id: str) -> None:
        """The caller holds `changed`."""
        if request_id in self._requests:
            self._cancelled.add(request_id)

    def cancel_all(self) -> None:
        """The caller holds `changed`."""
        self._cancelled.update(self._requests)

    def turn(self) -> None:
        """All that is due now, and one step. Raises what the runner raises but running out."""
        self._end_cancelled()
        self._end_expired()
        self._preempt()
        self._begin_admitted()
        with self._changed:
            work = self._scheduler.compose()
        if work:
            self._step(work)

    def recover(self, err: Exception) -> bool:
        """Fail what was on the device; whether the runner still works."""
        logger.error("a step failed; its requests get an error each", exc_info=err)
        for entry in self._all():
            if entry.is_admitted:
                self._end(entry, StepFailed("a step of the engine failed that this request shared"))
        try:
            warm_up(self._runner)
        except Exception:
            logger.critical("the runner does not recover; the engine is dead", exc_info=True)
            return False
        return True

    def fail_all(self, error: AllrounderError) -> None:
        for entry in self._all():
            self._end(entry, error)

    def abandon(self) -> None:
        """The thread ends: whatever ended it, nobody is left waiting."""
        with self._changed:
            left = list(self._requests.values())
            self._requests.clear()
        error = EngineDead("the engine has ended")
        for entry in left:
            self._post(entry.deliver, error)
        now = time.monotonic()
        for entry in left:
            self._observer.failed(entry.request, error, timing=entry.clock.timing(now))

    def _all(self) -> list[EngineRequest]:
        with self._changed:
            return list(self._requests.values())

    def _end_cancelled(self) -> None:
        with self._changed:
            gone = [self._requests[each] for each in self._cancelled if each in self._requests]
            self._cancelled.clear()
        for entry in gone:
            self._end(entry, RequestCancelled("the request was cancelled"))

    def _end_expired(self) -> None:
        with self._changed:
            expired = self._scheduler.expired(time.monotonic())
        for entry in expired:
            if entry.num_generated:
                self._end(entry, self._runner.finish(entry, FinishReason.DEADLINE))
            else:
                self._end(entry, DeadlineExceeded("the deadline passed before the first token"))

    def _preempt(self) -> None:
        with self._changed:
            victims = self._scheduler.preempt()
        for entry in victims:
            self._runner.preempt(entry)
            self._observer.preempted(entry.request)

    def _begin_admitted(self) -> None:
        now = time.monotonic()
        with self._changed:
            admitted = self._scheduler.admit()
        fresh = [entry for entry in admitted if not entry.is_admitted]
        if not fresh:
            return
        for entry in fresh:
            entry.clock.admitted_at = now
            self._observer.admitted(entry.request, queue_seconds=now - entry.request.arrival)
        for entry, error in zip(fresh, self._runner.begin(fresh), strict=True):
            if error is not None:
                self._end(entry, error)

    def _step(self, work: Sequence[ScheduledRows]) -> None:
        """Compute a step; where its requests do not fit the device together, halves of them."""
        try:
            outcomes = self._runner.step(work)
        except DeviceOutOfMemory:
            if len(work) == 1:
                error = EngineOutOfMemory("the request does not fit the device even alone")
                self._end(work[0].request, error)
                return
            logger.warning("%d requests do not fit one step; trying halves", len(work))
            half = len(work) // 2
            self._step(work[:half])
            self._step(work[half:])
            return
        self.num_steps += 1
        for outcome in outcomes:
            self._deliver(outcome)

    def _deliver(self, outcome: Outcome) -> None:
        entry = outcome.request
        if outcome.chunk is not None:
            self._observe_token(entry)
            self._post(entry.deliver, outcome.chunk)
        if outcome.error is not None:
            self._end(entry, outcome.error)
        elif outcome.result is not None:
            self._end(entry, outcome.result)

    def _observe_token(self, entry: EngineRequest) -> None:
        now = time.monotonic()
        if entry.clock.last_token_at is None:
            self._observer.first_token(entry.request, seconds=now - entry.request.arrival)
        else:
            self._observer.next_token(entry.request, seconds=now - entry.clock.last_token_at)
        entry.clock.last_token_at = now

    def _end(self, entry: EngineRequest, end: ChatResult | AllrounderError) -> None:
        """The one place where a request ends: memory, slot, metrics and stream together."""
        now = time.monotonic()
        admitted = entry.clock.admitted_at
        served = None
        if isinstance(end, ChatResult) and admitted is not None:
            served = now - admitted
        with self._changed:
            self._scheduler.release(entry.request.id, service_seconds=served)
            del self._requests[entry.request.id]
        try:
            self._runner.release(entry)
            if isinstance(end, ChatResult):
                self._observer.finished(entry.request, end)
            else:
                self._observer.failed(entry.request, end, timing=entry.clock.timing(now))
        finally:
            self._post(entry.deliver, end)
