"""Typed reads from Redis through a client that decodes replies to text, and pages with cursors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from redis.asyncio import Redis

_CHUNK = 200


class Listed(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Listed)


class UnknownCursor(Exception):
    """The list does not hold this id: it is unknown, was deleted, or is another tenant's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRequest:
    """`after`: the last id of the previous page, '' for the first page."""

    limit: int
    after: str = ""
    newest_first: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    has_more: bool


async def read_hash(client: Redis, name: str) -> dict[str, str]:
    """Empty where there is no such key."""
    return cast("dict[str, str]", await client.hgetall(name))


async def scan_hashes(client: Redis, prefix: str) -> dict[str, dict[str, str]]:
    """All hashes with this prefix, by the rest of their name; a few requests for a thousand."""
    found: dict[str, dict[str, str]] = {}
    cursor = -1
    while cursor:
        page = await client.scan(max(cursor, 0), match=f"{prefix}*", count=1000)
        cursor, names = cast("tuple[int, list[str]]", page)
        async with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(name)
            for name, fields in zip(names, await pipe.execute(), strict=True):
                found[name.removeprefix(prefix)] = fields
    return found


async def read_list(client: Redis, name: str) -> list[str]:
    return cast("list[str]", await client.lrange(name, 0, -1))


async def read_ranks(client: Redis, name: str) -> list[str]:
    """Members of a sorted set, lowest score first."""
    return cast("list[str]", await client.zrange(name, 0, -1))


async def read_stream(client: Redis, name: str) -> list[tuple[str, dict[str, str]]]:
    return cast("list[tuple[str, dict[str, str]]]", await client.xrange(name))


async def read_pending(client: Redis, name: str, group: str) -> set[str]:
    """Ids of entries that were delivered and not acknowledged, at most a million."""
    rows = cast(
        "list[dict[str, Any]]", await client.xpending_range(name, group, "-", "+", 1_000_000)
    )
    return {str(row["message_id"]) for row in rows}


async def read_hashes(client: Redis, names: Sequence[str]) -> list[dict[str, str]]:
    """In one round trip; empty where there is no such key."""
    if not names:
        return []
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hgetall(name)
    return cast("list[dict[str, str]]", await pipe.execute())


async def read_fields(
    client: Redis, names: Sequence[str], fields: Sequence[str]
) -> list[list[str | None]]:
    """The same fields of many hashes in one round trip, None where a field is missing."""
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(name, fields)
    return cast("list[list[str | None]]", await pipe.execute())


async def read_existing(client: Redis, names: Sequence[str]) -> list[bool]:
    """In one round trip: whether each key exists."""
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.exists(name)
    return [bool(found) for found in await pipe.execute()]


async def read_page(
    client: Redis,
    index: str,
    wanted: PageRequest,
    read: Callable[[Sequence[str]], Awaitable[Sequence[T | None]]],
) -> Page[T]:
    """The records of one page of `index`, a sorted set of ids.

    read: the records of these ids, None for each that does not belong in the list.
    Raises: UnknownCursor.
    """
    rank = await _first_rank(client, index, wanted)
    found: list[T] = []
    while len(found) <= wanted.limit:
        ids = await _ids(client, index, rank, wanted.newest_first)
        found += [record for record in await read(ids) if record is not None]
        rank += len(ids)
        if len(ids) < _CHUNK:
            break
    return Page(items=tuple(found[: wanted.limit]), has_more=len(found) > wanted.limit)


async def _first_rank(client: Redis, index: str, wanted: PageRequest) -> int:
    if not wanted.after:
        return 0
    rank_of = client.zrevrank if wanted.newest_first else client.zrank
    rank = cast("int | None", await rank_of(index, wanted.after))
    if rank is None:
        raise UnknownCursor
    return rank + 1


async def _ids(client: Redis, index: str, rank: int, newest_first: bool) -> list[str]:
    rows = await client.zrange(index, rank, rank + _CHUNK - 1, desc=newest_first)
    return cast("list[str]", rows)
