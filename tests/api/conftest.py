"""The real app and the real engine over the fake runner, in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder.engine.protocols import EngineState
from allrounder_service.main import create_app
from allrounder_service.settings import Settings


class Serving:
    """A running app, its engine, its runner, and a client of it."""

    def __init__(self, app, client, runner):
        self.app = app
        self.client = client
        self.engine = app.state.engine
        self.runner = runner

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    async def until_running(self, num_running):
        await self.until(lambda: self.engine.status().num_running == num_running)

    async def metric(self, series):
        """The value of one series as a scraper reads it."""
        text = (await self.client.get("/metrics")).text
        return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if series in line)


@asynccontextmanager
async def serving(runner=None, *, load=None, **settings):
    """`load` makes the runner and may block or fail; settings are those of the service."""
    runner = runner or FakeRunner()
    options = {"log_level": "error", "max_running": 4, "max_queue": 4, "drain_seconds": 2}
    service = Settings.model_validate(options | settings)

    def make_engine(settings, observer):
        return Engine(
            load or (lambda: runner),
            max_running=settings.max_running,
            max_queue=settings.max_queue,
            observer=observer,
        )

    app = create_app(service, make_engine)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        served = Serving(app, client, runner)
        if load is None:
            await served.until(lambda: served.engine.status().state is not EngineState.LOADING)
        yield served


@pytest.fixture
def serve():
    return serving
