"""The connection to the server of batch jobs, and the only map from its errors to ours.

No error of this module contains an address, a credential or another exception's text.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import EqualJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from allrounder.errors import QueueUnavailable, StartupError

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 5.0
HEALTH_CHECK_SECONDS = 15
MAX_CONNECTIONS = 32

T = TypeVar("T")

# Together about 1.5 s: a server that is started again is back by then.
_NUM_RETRIES = 5
_RETRY_BASE_SECONDS = 0.1
_RETRY_CAP_SECONDS = 0.5

_REFUSED = "the server of batch jobs refuses this service's credentials"
_MEMORY = "the server of batch jobs has no memory left"
_LOADING = "the server of batch jobs is loading its data"
_READ_ONLY = "the server of batch jobs is a read-only replica"
_AWAY = "the server of batch jobs cannot be reached"
_SLOW = "the server of batch jobs did not answer in time"
_SCRIPT = "the server of batch jobs has lost a script; it is sent again"
_BUSY = "the server of batch jobs is busy"
_DISK = "the server of batch jobs cannot write to its disk"
_CLUSTER = "the cluster of batch jobs is not in order"

# First match wins, so classes stand before those they derive from. Seconds until a retry is due.
_BY_CLASS: tuple[tuple[type[RedisError], str, float], ...] = (
    (AuthenticationError, _REFUSED, 30),
    (AuthorizationError, _REFUSED, 30),
    (NoPermissionError, _REFUSED, 30),
    (BusyLoadingError, _LOADING, 2),
    (ConnectionError, _AWAY, 2),
    (TimeoutError, _SLOW, 2),
    (OutOfMemoryError, _MEMORY, 10),
    (ReadOnlyError, _READ_ONLY, 5),
    (NoScriptError, _SCRIPT, 1),
    (ClusterDownError, _CLUSTER, 5),
    (TryAgainError, _CLUSTER, 1),
)
# redis-py has no class for these. In a pipeline its own words stand before the code.
_BY_CODE = {"BUSY": (_BUSY, 1), "UNKILLABLE": (_BUSY, 1), "MISCONF": (_DISK, 10)}
_CODE = re.compile(r"(?:^|caused error: \W*)([A-Z]+)\b")


class RefusedRetry(Retry):
    """Retries only commands that the server cannot have executed: it was down, or still loading.

    A command whose reply was lost may have run; only its caller knows whether it is idempotent.
    redis-py keeps one of these for each connection and nests its calls; the outermost one retries.
    """

    _is_nested = False

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[T]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        num_allowed = 0 if self._is_nested else self._retries
        was_nested, self._is_nested = self._is_nested, True
        try:
            for num_failures in count(1):
                try:
                    return await do()
                except (ConnectionError, TimeoutError) as err:
                    await (fail(err, num_failures) if with_failure_count else fail(err))
                    if num_failures > num_allowed or not _was_refused(err):
                        raise
                await asyncio.sleep(self._backoff.compute(num_failures))
            raise AssertionError("unreachable")
        finally:
            self._is_nested = was_nested


def connect(url: str) -> Redis:
    """A client with text replies that connects at its first command; close it with `aclose`.

    url: redis://, rediss:// or unix://. Options in its query, such as ?socket_timeout=9, win.
    Raises: StartupError for an address of another form or with an option that does not exist.
    """
    try:
        pool = _pool(url)
        # Its constructor rejects unknown options, which would otherwise fail at the first command.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError):
        raise StartupError("redis_url is not understood, or has an unknown option") from None
    return Redis.from_pool(pool)


def _pool(url: str) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        url,
        timeout=REPLY_SECONDS,
        decode_responses=True,
        # RESP3 would let servers push messages about maintenance between replies.
        protocol=2,
        socket_timeout=REPLY_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=HEALTH_CHECK_SECONDS,
        max_connections=MAX_CONNECTIONS,
        client_name="allrounder",
        retry=RefusedRetry(
            EqualJitterBackoff(base=_RETRY_BASE_SECONDS, cap=_RETRY_CAP_SECONDS),
            _NUM_RETRIES,
        ),
    )


@contextmanager
def queue_errors() -> Iterator[None]:
    """Errors of the server become `QueueUnavailable`; programming errors pass through.

    A command in here may have been executed although it raised: retry only idempotent ones.
    """
    try:
        yield
    except RedisError as err:
        if (known := _as_unavailable(err)) is None:
            raise
        raise known from err


def shown_address(url: str) -> str:
    """An address for operators, without credentials or options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 6379}{parts.path.rstrip('/')}"


def _as_unavailable(err: RedisError) -> QueueUnavailable | None:
    err = _root(err)
    for kind, text, seconds in _BY_CLASS:
        if isinstance(err, kind):
            return QueueUnavailable(text, retry_after_seconds=seconds)
    code = _CODE.search(str(err)) if isinstance(err, ResponseError) else None
    if code is None or code[1] not in _BY_CODE:
        return None
    text, seconds = _BY_CODE[code[1]]
    return QueueUnavailable(text, retry_after_seconds=seconds)


def _was_refused(err: RedisError) -> bool:
    root = _root(err)
    # redis-py raises its own error while handling the system's.
    return isinstance(root, BusyLoadingError) or isinstance(
        root.__context__, ConnectionRefusedError | FileNotFoundError
    )


def _root(err: RedisError) -> RedisError:
    """The server's own error where redis-py reports a lost connection after a refused PING."""
    while type(err) is ConnectionError and isinstance(err.__context__, RedisError):
        err = err.__context__
    return err
