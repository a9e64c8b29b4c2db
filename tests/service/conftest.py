"""The real service: embedded model, router, engine and HTTP app, in memory; started once."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from allrounder_service.main import create_app
from allrounder_service.settings import Settings
from tests.service.live import live_server


class Service:
    """A client of the running app, usable from plain tests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: Any) -> None:
        self._loop = loop
        self._client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://test", timeout=60
        )

    def post(self, path: str, **arguments: Any) -> httpx2.Response:
        return self._wait(self._client.post(path, **arguments))

    def get(self, path: str) -> httpx2.Response:
        return self._wait(self._client.get(path))

    def chat(self, image: NDArray[np.uint8], question: str, **fields: Any) -> dict[str, Any]:
        response = self.post(
            "/v1/chat", json={"image": png_url(image), "question": question, **fields}
        )
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def _wait(self, coroutine: Any) -> httpx2.Response:
        response: httpx2.Response = asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(
            60
        )
        return response


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def png_url(image: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    app = create_app(Settings(log_level="error", drain_seconds=5))
    lifespan = app.router.lifespan_context(app)

    async def start() -> Service:
        await lifespan.__aenter__()
        started = Service(loop, app)
        async with asyncio.timeout(60):
            while (await started._client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
        return started

    yield asyncio.run_coroutine_threadsafe(start(), loop).result(90)
    asyncio.run_coroutine_threadsafe(lifespan.__aexit__(None, None, None), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="session")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server process with the embedded model; started once."""
    with live_server(tmp_path_factory.mktemp("live") / "log", log_level="error") as url:
        yield url


@pytest.fixture(scope="module")
def batch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process with a queue of its own."""
    folder = tmp_path_factory.mktemp("batch")
    settings: dict[str, Any] = {
        "embedded_redis": "true",
        "data_dir": folder / "data",
        "log_level": "error",
    }
    with live_server(folder / "log", **settings) as url:
        yield url
