"""The real app on a real socket that sends its traces to a receiver of the test."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager, nullcontext

import httpx2
import pytest
import uvicorn

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder_service.main import build_engine, create_app
from allrounder_service.settings import Settings
from tests.tracing.receiver import receiving

PATIENCE_SECONDS = 60


class _QuietServer(uvicorn.Server):
    def capture_signals(self):
        return nullcontext()


@pytest.fixture(autouse=True)
def only_our_telemetry(monkeypatch):
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def receiver():
    with receiving() as found:
        yield found


@asynccontextmanager
async def serving(runner=None, *, demo=False, **settings):
    """A client of the running app. All spans have been sent once the block has ended."""
    options = {"max_running": 4, "max_queue": 4, "drain_seconds": 5}
    service = Settings.model_validate(options | settings)
    runner = runner or FakeRunner()

    def make_engine(settings, observer):
        return Engine(
            lambda: runner,
            max_running=settings.max_running,
            max_queue=settings.max_queue,
            observer=observer,
        )

    app = create_app(service, build_engine if demo else make_engine)
    server = _QuietServer(
        uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS) as client:
                await _until_ready(client)
                yield client
        finally:
            server.should_exit = True
            await task


async def _until_ready(client):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx2.ConnectError:
                pass
            await asyncio.sleep(0.01)


@pytest.fixture
def serve():
    return serving
