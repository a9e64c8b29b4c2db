"""Everything that one process runs for batch jobs: queue server, batch controller, worker."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from allrounder.engine.protocols import EngineFacade, EngineState
from allrounder.errors import QueueNotConfigured, QueueUnavailable
from allrounder_service.jobs.blob_store import BlobStore
from allrounder_service.jobs.connection import connect
from allrounder_service.jobs.execution import LineHandler
from allrounder_service.jobs.facade import Jobs, JobsOptions
from allrounder_service.jobs.heartbeat import Progress
from allrounder_service.jobs.queue import Queue, QueueLimits
from allrounder_service.jobs.server import QueueServer
from allrounder_service.jobs.tasks import cancel_and_wait, supervise
from allrounder_service.jobs.worker import Worker, num_prefetched
from allrounder_service.metrics.queue_metrics import JobsGauges
from allrounder_service.settings import Settings

logger = logging.getLogger(__name__)

FILES_FOLDER = "files"
# Batch lines have a reserved share of one slot in ten; interactive requests have priority.
BATCH_SHARE = 10
CENSUS_SECONDS = 1.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class EngineCapacity:
    """What a worker needs to know of an engine: its free slots and its progress."""

    engine: EngineFacade
    max_running: int

    def free_slots(self, executing: int) -> int:
        """Lines to claim now, given how many the worker has in execution."""
        status = self.engine.status()
        if status.state is not EngineState.READY:
            return 0
        busy = max(executing, status.num_running + status.num_waiting)
        room = self.max_running + num_prefetched(self.max_running) - busy
        return max(room, max(1, self.max_running // BATCH_SHARE) - executing)

    def progress(self, hang_seconds: float) -> Progress:
        return Progress(
            lambda: self.engine.status().num_steps,
            lambda: self.engine.status().num_running > 0,
            hang_seconds=hang_seconds,
        )


def jobs_options(settings: Settings) -> JobsOptions:
    limits = QueueLimits(
        max_lines=settings.max_queued_lines,
        max_tenant_lines=settings.max_tenant_lines,
        lease_ms=int(settings.batch_lease_seconds * 1000),
        retention_seconds=int(settings.batch_retention_days * 86_400),
    )
    return JobsOptions(
        max_file_bytes=settings.max_file_bytes,
        max_batch_lines=settings.max_batch_lines,
        queue=limits,
    )


def files_folder(settings: Settings) -> Path:
    return settings.data_dir / FILES_FOLDER


class JobsRuntime:
    """Owned by main: `start`, `release` and `stop` once each, on one event loop.

    No failure in here ends the process: without Redis only the batch routes are unavailable.
    """

    def __init__(self, settings: Settings, engine: EngineFacade) -> None:
        self._settings = settings
        self._capacity = EngineCapacity(engine=engine, max_running=settings.max_running)
        self.server = QueueServer(settings)
        self.gauges = JobsGauges()
        self._jobs: Jobs | None = None
        self._worker: Worker | None = None
        self._running: asyncio.Task[None] | None = None
        self._released = False

    def jobs(self) -> Jobs:
        """Raises QueueNotConfigured, QueueUnavailable or QueueUnsupported."""
        client = self.server.client
        if self._jobs is None:
            store = BlobStore(files_folder(self._settings))
            self._jobs = Jobs(client, store, jobs_options(self._settings))
        return self._jobs

    async def start(self, answer: LineHandler) -> None:
        """Return at once; the server may become ready later."""
        await self.server.start()
        self._running = asyncio.create_task(self._run(answer), name="jobs")
        self._running.add_done_callback(_log_failure)

    async def release(self) -> None:
        """Claim no more lines and release those in execution, ahead of a shutdown."""
        self._released = True
        if self._worker is not None:
            await self._worker.stop()

    async def stop(self) -> None:
        await self.release()
        if self._running is not None:
            await cancel_and_wait(self._running)
        if self._jobs is not None:
            await self._jobs.stop()
        await self.server.stop()

    async def refresh(self) -> None:
        """Update the gauges from Redis, for the current scrape."""
        try:
            async with asyncio.timeout(CENSUS_SECONDS):
                self.gauges.update(await self.jobs().queue.census())
        except QueueNotConfigured:
            self.gauges.clear()
        except (QueueUnavailable, RedisError, OSError, TimeoutError):
            self.gauges.update(None)

    async def _run(self, answer: LineHandler) -> None:
        jobs = await self._connected()
        if jobs is None:
            return
        await supervise(jobs.start, task="the start of batch jobs")
        if self._settings.batch_worker:
            await supervise(lambda: self._work(jobs, answer), task="the worker of batch jobs")

    async def _work(self, jobs: Jobs, answer: LineHandler) -> None:
        """Run a worker until released; one that fails releases its lines first."""
        if self._released:
            return
        self._worker = worker = self._make_worker(jobs, answer)
        try:
            await worker.run()
        except Exception:
            await worker.stop()
            raise

    async def _connected(self) -> Jobs | None:
        """None where no queue is configured."""
        while True:
            try:
                return self.jobs()
            except QueueNotConfigured:
                return None
            except QueueUnavailable:
                await asyncio.sleep(_POLL_SECONDS)

    def _make_worker(self, jobs: Jobs, answer: LineHandler) -> Worker:
        settings, options = self._settings, jobs.options.queue
        return Worker(
            jobs.queue,
            lambda: Queue(connect(self.server.url), options),
            jobs.store,
            answer,
            free_slots=self._capacity.free_slots,
            progress=self._capacity.progress(settings.batch_hang_seconds),
            heartbeat_seconds=settings.batch_lease_seconds / 6,
        )


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (err := task.exception()) is not None:
        logger.critical("batch jobs have stopped working in this process", exc_info=err)
