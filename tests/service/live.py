"""A server process with the embedded model, as an operator starts it, for clients of all kinds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]
SERVE = ("-c", "from allrounder_service.cli import main; main()", "serve")
PATIENCE_SECONDS = 150


@contextmanager
def live_server(
    log: Path, *, arguments: Sequence[str] = SERVE, **settings: object
) -> Iterator[str]:
    """Its address, ready. Settings go by the names of the service's own."""
    with live_process(log, arguments=arguments, **settings) as (url, _):
        yield url


@contextmanager
def live_process(
    log: Path, *, arguments: Sequence[str] = SERVE, **settings: object
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server, ready; it may be ended within the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {f"ALLROUNDER_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **given, "ALLROUNDER_PORT": str(port)},
            stderr=stderr,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(process, url, log)
        yield url, process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    with httpx2.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        while process.poll() is None and time.monotonic() < until:
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx2.ConnectError:
                pass
            time.sleep(0.1)
    raise AssertionError(f"the server did not become ready: {log.read_text()[-2000:]}")
