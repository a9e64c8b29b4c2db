"""A server of our own for the time of a benchmark: a child process on a free local port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx2

from allrounder.errors import StartupError

_ROOT = Path(__file__).parents[2]
_LOAD_SECONDS = 900.0
# Nothing runs beside the requests that are timed, unless the flags say so.
_NO_QUEUE = ("--no-embedded-redis",)
_STOP_SECONDS = 40.0
_POLL_SECONDS = 0.1
_LOG_TAIL_BYTES = 2000


@contextmanager
def own_server(flags: Sequence[str]) -> Iterator[str]:
    """The address of `allrounder serve` with these flags, once it is ready; ends it afterwards.

    Raises StartupError with the end of its log if it does not come up.
    """
    port = _free_port()
    command = [sys.executable, "-m", "allrounder_service", "serve"]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--log-level", "warning", *_NO_QUEUE, *flags],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _LOAD_SECONDS
    with httpx2.Client(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/readyz").status_code == httpx2.codes.OK:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(_POLL_SECONDS)
    log.seek(0)
    tail = log.read()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    raise StartupError(f"the server did not become ready; the end of its log:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
