"""Real servers on this machine: our app over the fake runner, and a peer with OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from allrounder.engine.engine import Engine
from allrounder.engine.fake import FakeRunner
from allrounder_service.main import create_app
from allrounder_service.settings import Settings


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an app on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", lifespan="on", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def fake_service(runner: FakeRunner, **settings: Any) -> Iterator[str]:
    options = {"log_level": "error", "max_running": 4, "max_queue": 64, "drain_seconds": 1}

    def make_engine(settings, observer):
        return Engine(
            lambda: runner,
            max_running=settings.max_running,
            max_queue=settings.max_queue,
            observer=observer,
        )

    app = create_app(Settings.model_validate(options | settings), make_engine)
    with served(app) as url:
        until(lambda: app.state.engine.status().state == "ready")
        yield url


def peer_app(*, step_seconds: float, num_tokens: int, seen: list[dict[str, Any]]) -> FastAPI:
    """Streams `num_tokens` words and their count; keeps the bodies that it was sent."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> StreamingResponse:
        seen.append(body)
        return StreamingResponse(words(), media_type="text/event-stream")

    async def words() -> AsyncIterator[str]:
        for idx in range(num_tokens):
            await asyncio.sleep(step_seconds)
            yield event({"choices": [{"index": 0, "delta": {"content": f" w{idx}"}}]})
        yield event({"choices": [], "usage": {"completion_tokens": num_tokens}})
        yield "data: [DONE]\n\n"

    return app


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


@pytest.fixture
def service() -> Iterator[str]:
    with fake_service(FakeRunner(step_seconds=0.005)) as url:
        yield url
