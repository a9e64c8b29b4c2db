"""The composition root: builds engine, metrics and web app from settings, and serves them.

Importing this loads no model and no torch; the engine is loaded in the background once serving
has begun, so that probes answer from the first moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI

from allrounder.engine.protocols import EngineFacade, EngineState, Observer
from allrounder.errors import StartupError
from allrounder_service import logs
from allrounder_service.api.auth import key_ring, protected_scopes
from allrounder_service.api.deps import Services
from allrounder_service.api.endpoints import ENDPOINTS, WORKER_ENDPOINTS
from allrounder_service.api.intake.api_request import ChatLimits
from allrounder_service.api.intake.images import ImageDecoder
from allrounder_service.api.limits import Limiter
from allrounder_service.api.serving import answer_line
from allrounder_service.api.transport import TransportLimits, protocol_with
from allrounder_service.api.webapp import add_endpoints, add_middleware, bare_app, own_version
from allrounder_service.jobs.execution import LineHandler, LineResponse
from allrounder_service.jobs.runtime import JobsRuntime
from allrounder_service.metrics.definitions import build_instruments, render
from allrounder_service.metrics.engine_metrics import EngineGauges, EngineMetrics, HttpMetrics
from allrounder_service.settings import Settings
from allrounder_service.tracing.trace import Tracer, following
from allrounder_service.tracing.traced_engine import TracedEngine, TracedObserver

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5
EXIT_ENGINE_FAILED = 3


class ServedEngine(EngineFacade, Protocol):
    """An engine with the lifecycle that main controls. Building one is cheap; `start` loads."""

    async def start(self) -> None:
        """Load; READY at the end. If loading fails: raises, and the state is DEAD."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new requests, let the admitted ones finish, cancel what is left after `grace`."""
        ...


EngineFactory = Callable[[Settings, Observer], ServedEngine]


def build_engine(settings: Settings, observer: Observer) -> ServedEngine:
    """The real engine. The imports are here because they load torch."""
    from allrounder.engine.engine import Engine
    from allrounder.engine.startup import load_runner

    return Engine(
        partial(load_runner, settings),
        max_running=settings.max_running,
        max_queue=settings.max_queue,
        max_step_rows=settings.max_step_rows,
        observer=observer,
    )


def create_app(
    settings: Settings, engine_factory: EngineFactory = build_engine, *, only_worker: bool = False
) -> FastAPI:
    """A web app with its own engine, which its lifespan loads and drains.

    Args:
        only_worker: runs batch jobs and serves only probes and metrics.
    """
    instruments = build_instruments()
    engine_metrics = EngineMetrics(instruments)
    tracer = _tracer(settings)
    traced = None if tracer is None else TracedObserver(engine_metrics)
    engine = engine_factory(settings, traced or engine_metrics)
    instruments.registry.register(EngineGauges(engine.status, EngineState))
    runtime = JobsRuntime(settings, engine)
    instruments.registry.register(runtime.gauges)
    services = Services(
        engine=engine if traced is None else TracedEngine(engine, traced),
        decoder=ImageDecoder(num_threads=settings.image_threads),
        limits=_limits(settings),
        keys=key_ring(settings),
        limiter=Limiter(),
        protected=protected_scopes(settings),
        scrape=partial(render, instruments.registry),
        refresh=runtime.refresh,
        refused=engine_metrics.rejected,
        max_body_bytes=settings.max_body_bytes,
        started=int(time.time()),
        jobs=runtime.jobs,
    )
    app = bare_app(_lifespan(settings, services, engine, runtime, tracer))
    app.state.services = services
    app.state.engine = engine
    app.state.runtime = runtime
    add_endpoints(app, WORKER_ENDPOINTS if only_worker else ENDPOINTS)
    add_middleware(app, settings, HttpMetrics(instruments), tracer)
    return app


def _lifespan(
    settings: Settings,
    services: Services,
    engine: ServedEngine,
    runtime: JobsRuntime,
    tracer: Tracer | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(engine))
        await runtime.start(_line_answer(services, tracer))
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await runtime.release()
        await engine.stop(settings.drain_seconds)
        await runtime.stop()
        services.decoder.close()
        if tracer is not None:
            await tracer.stop(min(settings.drain_seconds, FLUSH_SECONDS))

    return lifespan


def _tracer(settings: Settings) -> Tracer | None:
    """Raises StartupError if tracing is configured but OpenTelemetry is not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from allrounder_service.tracing.otel import OtelTracer
    except ModuleNotFoundError as err:
        raise StartupError(
            "otlp_endpoint: traces need the extra otel (pip install 'allrounder[otel]')"
        ) from err
    return OtelTracer(
        settings.otlp_endpoint, ratio=settings.trace_sample_ratio, version=own_version()
    )


def _line_answer(services: Services, tracer: Tracer | None) -> LineHandler:
    async def answer(
        url: str, body: Mapping[str, Any], *, tenant: str, id: str, job: str
    ) -> LineResponse:
        trace = None if tracer is None else tracer.line(id=id, job=job)
        with nullcontext() if trace is None else following(trace):
            status, found = await answer_line(services, url, body, tenant=tenant, id=id)
        return LineResponse(status=status, body=found)

    return answer


async def _load(engine: ServedEngine) -> None:
    try:
        await engine.start()
    except Exception:
        logger.critical("the engine could not be started", exc_info=True)


def _limits(settings: Settings) -> ChatLimits:
    return ChatLimits(
        default_budget=settings.default_budget,
        max_tokens_default=settings.max_tokens_default,
        max_tokens_limit=settings.max_tokens_limit,
        max_image_bytes=settings.max_image_bytes,
    )


class Server(uvicorn.Server):
    """Drains before it closes its sockets, so that probes see it; exits if the engine dies."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        engine: ServedEngine,
        release_jobs: Callable[[], Awaitable[None]],
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._release_jobs = release_jobs
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[None] | None = None
        self.engine_failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain, then exit. Second: exit now."""
        if self._draining is None and self.started:
            asyncio.get_running_loop().call_soon_threadsafe(self._begin_draining)
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._engine.status().state is EngineState.DEAD:
            logger.critical("the engine is dead; the process ends")
            self.engine_failed = True
            return True
        return await super().on_tick(counter)

    def _begin_draining(self) -> None:
        self._draining = self._draining or asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            # Concurrently: batch lines are released at once, interactive requests run to their end.
            await asyncio.gather(self._engine.stop(self._drain_seconds), self._release_jobs())
        finally:
            self.should_exit = True


def serve(
    settings: Settings, engine_factory: EngineFactory = build_engine, *, only_worker: bool = False
) -> int:
    """Run until a signal; the exit code. One process owns one device: never more workers."""
    logs.configure(settings.log_level)
    app = create_app(settings, engine_factory, only_worker=only_worker)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        workers=1,
        http=protocol_with(
            TransportLimits(
                max_header_bytes=settings.max_header_bytes,
                max_connections=settings.max_connections,
                head_seconds=settings.slow_client_seconds,
            )
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    server = Server(
        config,
        engine=app.state.engine,
        release_jobs=app.state.runtime.release,
        drain_seconds=settings.drain_seconds,
    )
    server.run()
    return EXIT_ENGINE_FAILED if server.engine_failed else 0
