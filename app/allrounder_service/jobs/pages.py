"""Lists with cursors over a sorted set of ids, as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from redis.asyncio import Redis

_CHUNK = 200


class Listed(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Listed)


class UnknownCursor(Exception):
    """No list holds this id: there never was one, it was deleted, or it is somebody else's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageRequest:
    """`after`: the id that ended the page before, '' for the first one."""

    limit: int
    after: str = ""
    newest_first: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    has_more: bool


async def read_page(
    client: Redis,
    index: str,
    wanted: PageRequest,
    read: Callable[[Sequence[str]], Awaitable[Sequence[T | None]]],
) -> Page[T]:
    """`read` gives the records of these ids, None for what does not belong in the list.

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
