"""Keeps one server running in its folder: starts it, restarts it with backoff, stops it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from allrounder_service.jobs.embedded.binary import CONFIG, LAUNCHER, ServerBinary
from allrounder_service.jobs.embedded.folder import SOCKET, DataFolder

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 10.0
# A server that ran this long did not fail because of how it starts.
STABLE_SECONDS = 30.0
STOP_SECONDS = 10.0

_LOG_BYTES = 2**20
_LOG_TAIL_BYTES = 400


class EmbeddedServer:
    """A server program under supervision. All methods may be called from any thread, and block.

    It cannot outlive this process. Its supervisor is a thread of its own, because the kernel ends
    the server with the thread that started it.
    """

    def __init__(self, binary: ServerBinary, folder: DataFolder, *, maxmemory_bytes: int) -> None:
        self.binary = binary
        self.folder = folder
        self.maxmemory_bytes = maxmemory_bytes
        self.num_restarts = 0
        self._life = threading.Lock()
        self._thread: threading.Thread | None = None
        self._current = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    @property
    def pid(self) -> int | None:
        """Process at the moment; None before the start, between two attempts and after the end."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Take the folder and launch; the server may not answer yet. Nothing happens after `stop`.

        Raises: DataFolderInUse, DataFolderUnusable; it may then be called again.
        """
        with self._life:
            if self._thread is not None or self._stopping.is_set():
                return
            self.folder.open()
            try:
                self.folder.lock()
            except BaseException:
                self.folder.close()
                raise
            self._thread = threading.Thread(
                target=self._supervise, name="embedded-server", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Shut the server down, by SIGKILL if it does not react, and release the folder."""
        self._stopping.set()
        with self._life:
            if self._thread is None:
                return
            self._signal(signal.SIGTERM)
            self._thread.join(STOP_SECONDS)
            if self._thread.is_alive():
                logger.warning("the embedded server does not end; it is killed")
                self._signal(signal.SIGKILL)
                self._thread.join()
            self._thread = None
            self.folder.close()

    def _signal(self, sig: signal.Signals) -> None:
        with self._current:
            if self._process is not None:
                self._process.send_signal(sig)

    def _supervise(self) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                ended = self._run_once()
            except OSError as err:
                ended = f"could not be started: {err.strerror}"
            if self._stopping.is_set():
                return
            if time.monotonic() - began > STABLE_SECONDS:
                delay = FIRST_DELAY_SECONDS
            logger.error(
                "the embedded server %s; it is started again",
                ended,
                extra={"in_seconds": delay, "log": str(self._log_path), "last": self._last_lines()},
            )
            self._stopping.wait(delay)
            delay = min(2 * delay, MAX_DELAY_SECONDS)
            self.num_restarts += 1

    def _run_once(self) -> str:
        """From launch to end; the launch is under the lock, so that `stop` reaches every server."""
        with self._current:
            if self._stopping.is_set():
                return "is not needed"
            with self._open_log() as log:
                process = subprocess.Popen(
                    self._command(),
                    cwd=self.folder.path,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(self.folder.server_lock,),
                    umask=0o077,
                    # Ctrl-C is for this process, which stops the server when it has drained.
                    start_new_session=True,
                )
            self._process = process
        return f"ended with code {process.wait()}"

    def _command(self) -> list[str]:
        # The socket's name is relative to the working directory, so its length does not matter.
        options = {
            "port": "0",
            "unixsocket": SOCKET,
            "unixsocketperm": "700",
            "maxmemory": str(self.maxmemory_bytes),
            "daemonize": "no",
        }
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [*launch, str(self.binary.path), str(CONFIG), *words]

    @property
    def _log_path(self) -> Path:
        return self.folder.path / "server.log"

    def _open_log(self) -> BinaryIO:
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".log.1"))
        self._log_path.touch(mode=0o600)
        return self._log_path.open("ab")

    def _last_lines(self) -> list[str]:
        if not self._log_path.exists():
            return []
        with self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-3:]
