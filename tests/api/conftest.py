"""The real app over the fake engine, in memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest

from app.engine.base import EngineState
from app.engine.fake import FakeRunner
from app.main import create_app
from app.settings import Settings
from tests.api.fake_engine import FakeEngine


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Serving:
    """A running app, its engine, and a client of it."""

    def __init__(self, app, client):
        self.app = app
        self.client = client
        self.engine = app.state.engine

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(runner=None, *, load=None, **settings):
    """`load` makes the runner and may fail; settings are those of the service."""
    options = {"log_level": "error", "max_running": 4, "max_queue": 4, "drain_seconds": 2}
    settings = Settings(**(options | settings))

    def make_engine(settings, observer):
        return FakeEngine(
            load or (lambda: runner or FakeRunner()),
            max_running=settings.max_running,
            max_queue=settings.max_queue,
            observer=observer,
        )

    app = create_app(settings, make_engine)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        served = Serving(app, client)
        await served.until(lambda: served.engine.state is not EngineState.LOADING)
        yield served


@pytest.fixture
def serve():
    return serving
