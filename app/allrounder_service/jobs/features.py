"""Whether a server can hold batch jobs, found by trying what they need, and how it is set up."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from allrounder.errors import QueueUnsupported
from allrounder_service.jobs.connection import queue_errors

NUM_TIMED_WRITES = 5
MEMORY_ALERT_RATIO = 0.7

# In the hash slot and under the prefix of the jobs' own keys, so that one ACL covers both.
_SCRATCH = "vq:{v}:scratch:"
_SCRATCH_MS = 10_000

# Scripts that give results back must run when memory is full. Before Redis 7.0 the first line is a
# syntax error, and XAUTOCLAIM does not name the entries that were deleted: two parts, not three.
_TRY_FEATURES = """#!lua flags=allow-oom
redis.call('XGROUP', 'CREATE', KEYS[1], 'g', '0', 'MKSTREAM')
local claimed = redis.call('XAUTOCLAIM', KEYS[1], 'g', 'c', 0, '0-0', 'COUNT', 1)
redis.call('DEL', KEYS[1])
return #claimed
"""
_NUM_CLAIM_PARTS = 3


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """What a server says of itself; None where it does not say. Memory in bytes, 0: no limit."""

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


async def examine_server(client: Redis) -> ServerFacts:
    """Try the features, read the set-up, time a few writes.

    Raises: QueueUnsupported; QueueUnavailable if the server is away, loading, full and so on.
    """
    with queue_errors():
        await _try_features(client)
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


async def _try_features(client: Redis) -> None:
    try:
        with queue_errors():
            num_parts = await client.eval(_TRY_FEATURES, 1, _scratch_key())
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
    """None where an ACL or a provider keeps the command to itself; jobs do not depend on it."""
    try:
        return await ask()
    except NoPermissionError:
        return None
    except ResponseError as err:
        if "unknown command" in str(err).lower():
            return None
        raise


async def _time_fsync(client: Redis) -> float | None:
    """Milliseconds that a write takes longer than a PING: the fsync, where each write waits for it.

    Timed from here rather than on a file: it is what jobs will wait for, on whatever disk the
    server has. Medians; None while the server's memory is full.
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
