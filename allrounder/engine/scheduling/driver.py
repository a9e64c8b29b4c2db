"""One turn of the engine: end, preempt, admit, step, deliver. Runs on the engine's own thread.

`add`, `cancel` and the counts may be called from other threads; `changed` guards what they share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Condition

from allrounder.core import ChatResult, FinishReason
from allrounder.engine.protocols import DeviceOutOfMemory, Observer, Outcome, Runner, Running
from allrounder.engine.scheduling.job import Job
from allrounder.engine.scheduling.scheduler import Scheduler
from allrounder.engine.scheduling.tickets import Share, Ticket
from allrounder.engine.warmup import warm_up
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
    """Holds the jobs of one engine; every one that was added ends exactly once.

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
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self.num_steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def add(self, job: Job, ticket: Ticket) -> None:
        """Raises QueueFull, DeadlineExceeded, or InternalError for an id that is here already.

        The caller holds `changed`.
        """
        if ticket.id in self._jobs:
            raise InternalError("a request with this id is in the engine already")
        self._scheduler.submit(ticket, time.monotonic())
        self._jobs[ticket.id] = job

    def cancel(self, request_id: str) -> None:
        """The caller holds `changed`."""
        if request_id in self._jobs:
            self._cancelled.add(request_id)

    def cancel_all(self) -> None:
        """The caller holds `changed`."""
        self._cancelled.update(self._jobs)

    def turn(self) -> None:
        """All that is due now, and one step. Raises what the runner raises but running out."""
        self._end_cancelled()
        self._end_expired()
        self._preempt()
        self._begin_admitted()
        with self._changed:
            shares = self._scheduler.compose()
        if shares:
            self._step(shares)

    def recover(self, err: Exception) -> bool:
        """Fail what was on the device; whether the runner still works."""
        logger.error("a step failed; its requests get an error each", exc_info=err)
        for job in self._jobs_now():
            if job.is_on_device:
                self._end(job, StepFailed("a step of the engine failed that this request shared"))
        try:
            warm_up(self._runner)
        except Exception:
            logger.critical("the runner does not recover; the engine is dead", exc_info=True)
            return False
        return True

    def fail_all(self, error: AllrounderError) -> None:
        for job in self._jobs_now():
            self._end(job, error)

    def abandon(self) -> None:
        """The thread ends: whatever ended it, nobody is left waiting."""
        with self._changed:
            left = list(self._jobs.values())
            self._jobs.clear()
        error = EngineDead("the engine has ended")
        for job in left:
            self._post(job.stream.deliver, error)
        now = time.monotonic()
        for job in left:
            self._observer.failed(job.request, error, timing=job.timing(now))

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

    def _preempt(self) -> None:
        with self._changed:
            jobs = [self._jobs[request_id] for request_id in self._scheduler.preempt()]
        for job in jobs:
            if job.running is not None:
                self._runner.preempt(job.running)
            self._observer.preempted(job.request)

    def _begin_admitted(self) -> None:
        now = time.monotonic()
        with self._changed:
            admitted = [self._jobs[request_id] for request_id in self._scheduler.admit()]
        jobs = [job for job in admitted if job.running is None]
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

    def _step(self, shares: Sequence[Share]) -> None:
        """Compute the shares; where they do not fit the device together, half of them at a time."""
        try:
            outcomes = self._runner.step(self._work(shares))
        except DeviceOutOfMemory:
            if len(shares) == 1:
                job = self._jobs[shares[0].id]
                self._end(job, EngineOutOfMemory("the request does not fit the device even alone"))
                return
            logger.warning("%d requests do not fit one step; trying halves", len(shares))
            half = len(shares) // 2
            self._step(shares[:half])
            self._step(shares[half:])
            return
        self.num_steps += 1
        with self._changed:
            self._scheduler.advance(shares)
        for outcome in outcomes:
            self._deliver(outcome)

    def _work(self, shares: Iterable[Share]) -> list[tuple[Running, int]]:
        work = []
        for share in shares:
            running = self._jobs[share.id].running
            assert running is not None, "only what has begun is in a step"
            work.append((running, share.num_rows))
        return work

    def _deliver(self, outcome: Outcome) -> None:
        job = self._jobs[outcome.request_id]
        if outcome.chunk is not None:
            self._observe_token(job)
            self._post(job.stream.deliver, outcome.chunk)
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
        now = time.monotonic()
        served = now - job.admitted_at if isinstance(end, ChatResult) else None
        with self._changed:
            self._scheduler.release(job.request.id, service_seconds=served)
            del self._jobs[job.request.id]
        try:
            if job.running is not None:
                self._runner.release(job.running)
            if isinstance(end, ChatResult):
                self._observer.finished(job.request, end)
            else:
                self._observer.failed(job.request, end, timing=job.timing(now))
        finally:
            self._post(job.stream.deliver, end)
