"""A real Prometheus with the shipped configuration, and a little traffic for it to see."""

from __future__ import annotations

import asyncio
import base64
import math
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import yaml  # type: ignore[import-untyped]

from tests.deploy.expressions import DEPLOY, ROOT, RULES

SCRAPE_SECONDS = 0.5
NUM_CLIENTS = 3
MIN_QUESTIONS = 4
BUDGETS = (1, 0.5, 0.25, {"tokens": 24, "layers": 13})
QUESTION = "Describe the largest shape."

Series = dict[str, Any]


class Prometheus:
    """Its HTTP API, as far as the tests need it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx2.Client(base_url=f"{url}/api/v1", trust_env=False, timeout=10)

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get(f"{self.url}/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def get(self, path: str, **parameters: Any) -> Any:
        response = self._client.get(path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[Series]:
        series: list[Series] = self.get("query", query=expression)["result"]
        return series

    def query_range(self, expression: str, *, start: float, end: float) -> list[Series]:
        """Each series' `values` as [unix seconds, text] twice a second."""
        series: list[Series] = self.get(
            "query_range", query=expression, start=start, end=end, step=SCRAPE_SECONDS
        )["result"]
        return series

    def has_data(self, expression: str) -> bool:
        return any(not math.isnan(float(each["value"][1])) for each in self.query(expression))


@contextmanager
def running_prometheus(server_url: str, folder: Path) -> Iterator[Prometheus]:
    """Scrapes the server twice a second by the shipped configuration; ends with the block."""
    port = _free_port()
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(_configuration(server_url)), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _wait_for(prometheus, process, folder / "log")
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(20)


def _configuration(server_url: str) -> dict[str, Any]:
    """The shipped one, pointed at one server and quickened; names of containers are left out."""
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = (job for job in shipped["scrape_configs"] if "static_configs" in job)
    interval = f"{SCRAPE_SECONDS * 1000:.0f}ms"
    return {
        **shipped,
        "global": {
            "scrape_interval": interval,
            "scrape_timeout": interval,
            "evaluation_interval": interval,
        },
        "rule_files": [str(RULES / "*.yml")],
        "scrape_configs": [{**job, "static_configs": [{"targets": [urlsplit(server_url).netloc]}]}],
    }


def _wait_for(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it has scraped the server."""
    deadline = time.monotonic() + 30
    while not (prometheus.is_ready() and prometheus.query("up == 1")):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def make_traffic(server_url: str, *, seconds: float) -> None:
    """A few clients that ask at one budget after the other, stream, and make mistakes."""
    asyncio.run(_ask_for(server_url, seconds))


async def _ask_for(server_url: str, seconds: float) -> None:
    async with httpx2.AsyncClient(base_url=server_url, trust_env=False, timeout=60) as client:
        for budget in BUDGETS:
            until = time.monotonic() + seconds / len(BUDGETS)
            await asyncio.gather(*(_ask(client, budget, until, idx) for idx in range(NUM_CLIENTS)))


async def _ask(client: httpx2.AsyncClient, budget: object, until: float, idx: int) -> None:
    """Ask until then, but a few times even where the machine is slow; one client errs as well."""
    count = 0
    while count < MIN_QUESTIONS or time.monotonic() < until:
        response = await client.post("/v1/chat", json=_body(budget=budget, stream=count % 3 == 0))
        assert response.status_code == 200, response.text
        if idx == 0:
            await _err(client, count)
        count += 1


async def _err(client: httpx2.AsyncClient, count: int) -> None:
    """What goes wrong in life, one thing a time, each with the status that it has to get."""
    path, body, status = (
        ("/v1/chat", _body(budget=0.001), 422),
        ("/v1/chat", _body(image="data:image/png;base64,AAAA"), 400),
        ("/v1/chat", _body(deadline_ms=1), 504),
        ("/nothing", {}, 404),
        ("/v1/plan", _body(budget=0.5), 200),
    )[count % 5]
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text


def _body(**fields: Any) -> dict[str, Any]:
    return {"image": _image(), "question": QUESTION, "max_tokens": 12, **fields}


def _image() -> str:
    content = (ROOT / "allrounder" / "demo" / "example.png").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()
