"""The registry of contracts, and the checks that they share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.jobs.scenes import Scene

Contract = Callable[[Scene], Awaitable[None]]
CONTRACTS: dict[str, Contract] = {}


def contract(check: Contract) -> Contract:
    CONTRACTS[check.__name__] = check
    return check


async def observe(scene: Scene, call: Callable[[], Awaitable[object]]) -> tuple[object, object]:
    return await call(), await scene.dump()


async def check_repeat(scene: Scene, call: Callable[[], Awaitable[object]]) -> None:
    """The second call changes nothing and returns success again."""
    first, after = await observe(scene, call)
    again, later = await observe(scene, call)
    assert later == after
    assert bool(again) == bool(first)
    assert first


async def check_refused(scene: Scene, call: Callable[[], Awaitable[object]]) -> None:
    before = await scene.dump()
    answer, after = await observe(scene, call)
    assert after == before
    assert answer in (False, -1, 0)


def numbers(claimed) -> list[int]:
    return [int(each.job.partition("/")[2]) for each in claimed]
