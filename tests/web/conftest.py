"""A real Chromium before a real server process with the embedded model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.api.test_server import until_ready

ROOT = Path(__file__).parents[2]
EMBEDDED = (sys.executable, "-c", "from allrounder_service.cli import main; main()", "serve")
FAKE = (sys.executable, "-m", "tests.api.fake_server")
LOAD_MS = 20_000
# Chromium reports a refused request by itself, before the page has said a word.
REFUSED = "Failed to load resource"


@dataclass(frozen=True, kw_only=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]
    client: httpx2.Client


@contextmanager
def serving(command: tuple[str, ...], log: Path, **settings: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "ALLROUNDER_PORT": str(port), **settings}
    with log.open("wb") as stderr, httpx2.Client(base_url=url, timeout=60) as client:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)
        try:
            until_ready(client, process)
            yield Server(url=url, process=process, client=client)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("web") / "log"
    with serving(EMBEDDED, log, ALLROUNDER_LOG_LEVEL="warning") as started:
        yield started


@pytest.fixture
def fake_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server over the fake engine, which takes 50 ms a step, with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            serving(FAKE, tmp_path / "fake.log", **settings)
        )


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "chromium is needed: make test installs it, or apt-get install it"
    # Chromium's sandbox needs a user other than root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=LOAD_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=arguments)
        yield launched
        launched.close()


@dataclass(kw_only=True)
class Visits:
    """Opens pages, each in a context of its own, and hears what they complain about."""

    browser: Browser
    url: str
    contexts: list[BrowserContext] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    may_be_refused: bool = False

    def __call__(
        self, path: str = "/", *, url: str | None = None, ready: str = "#saved", **options: Any
    ) -> Page:
        sizes = {"viewport": {"width": 1440, "height": 900}, **options}
        context = self.browser.new_context(**sizes)
        context.set_default_timeout(LOAD_MS)
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self._hear("error", str(error)))
        page.goto((url or self.url) + path)
        page.wait_for_selector(ready)
        return page

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.may_be_refused and text.startswith(REFUSED)):
            self.complaints.append(f"{kind}: {text}")


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visits]:
    """Every page of a test must stay free of console errors."""
    visits = Visits(browser=browser, url=server.url)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.complaints == []


@pytest.fixture
def refused_visit(visit: Visits) -> Visits:
    """For tests in which the server refuses requests, which Chromium logs by itself."""
    visit.may_be_refused = True
    return visit
