"""The data folder of an embedded server: private, with one owner, its socket reachable by any path.

Two locks. `owner.lock` is the process's that starts servers here. `server.lock` is inherited by
the server itself, so a server that outlives its owner still keeps a second one off its file.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from urllib.parse import quote

import redis

from allrounder.errors import DataFolderInUse, DataFolderUnusable
from allrounder_service.settings import Settings

SOCKET = "queue.sock"

# sun_path holds 108 bytes on Linux and 104 on macOS.
MAX_SOCKET_PATH = 100

_TAKE_OVER_SECONDS = 2.0
_SHUTDOWN_SECONDS = 5.0
_POLL_SECONDS = 0.05


class DataFolder:
    """`open` it, then `lock` it if needed; `close` undoes both."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._folder_fd: int | None = None
        self._owner_fd: int | None = None
        self._server_fd: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> DataFolder:
        return cls(settings.data_dir / "queue")

    @property
    def url(self) -> str:
        """unix:// address of the server in here, for this process, while the folder is open.

        A path too long for a socket's address is reached through the open folder.
        """
        path = os.fsencode(self.path / SOCKET)
        if len(path) > MAX_SOCKET_PATH:
            path = f"/proc/self/fd/{self._folder_fd}/{SOCKET}".encode()
        return f"unix://{quote(path)}"

    @property
    def server_lock(self) -> int:
        """Descriptor that a server must inherit."""
        assert self._server_fd is not None
        return self._server_fd

    def open(self) -> None:
        """Create it, for this user alone. Raises: DataFolderUnusable."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            os.fchmod(self._folder_fd, 0o700)
        except OSError as err:
            self.close()
            raise DataFolderUnusable(f"{self.path} cannot be used: {err.strerror}") from err
        if self.url.startswith("unix:///proc/") and not Path("/proc/self/fd").is_dir():
            self.close()
            raise DataFolderUnusable(
                f"the path {self.path} has more than {MAX_SOCKET_PATH} bytes: choose a shorter one"
            )

    def lock(self) -> None:
        """Become its only owner; waits for one that is shutting down, stops an orphaned server.

        Raises: DataFolderInUse, DataFolderUnusable.
        """
        try:
            self._owner_fd = self._locked("owner.lock", _TAKE_OVER_SECONDS)
            if self._owner_fd is not None:
                self._server_fd = self._locked("server.lock", _TAKE_OVER_SECONDS)
                if self._server_fd is None:
                    self._shut_down_orphan()
                    self._server_fd = self._locked("server.lock", _SHUTDOWN_SECONDS)
        except OSError as err:
            self.unlock()
            raise DataFolderUnusable(f"{self.path} cannot be locked: {err.strerror}") from err
        if self._owner_fd is None or self._server_fd is None:
            self.unlock()
            raise DataFolderInUse(
                f"another process keeps its queue in {self.path}: end it, give this one another "
                "folder (ALLROUNDER_DATA_DIR), or let both use one server (ALLROUNDER_REDIS_URL)"
            )

    def unlock(self) -> None:
        _close(self._owner_fd, self._server_fd)
        self._owner_fd = self._server_fd = None

    def close(self) -> None:
        self.unlock()
        _close(self._folder_fd)
        self._folder_fd = None

    def _locked(self, name: str, timeout_seconds: float) -> int | None:
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._folder_fd)
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return None
            except OSError:
                os.close(fd)
                raise
            time.sleep(_POLL_SECONDS)

    def _shut_down_orphan(self) -> None:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=_SHUTDOWN_SECONDS) as client:
                client.shutdown(nosave=True)
        except redis.RedisError:
            # The lock shows whether it has ended.
            return


def _close(*fds: int | None) -> None:
    for fd in fds:
        if fd is not None:
            os.close(fd)
