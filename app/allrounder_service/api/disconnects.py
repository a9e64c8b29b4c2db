"""A caller that hangs up frees what its request holds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive

from allrounder.core import ChatResult
from allrounder.engine.protocols import ChatStream
from allrounder.errors import RequestCancelled


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client is gone. The body must have been read to its end before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(work: Coroutine[Any, Any, Any], receive: Receive) -> bool:
    """Run `work` to its end, or cancel it when the client goes first. True: it ended."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(until_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def await_result(stream: ChatStream, receive: Receive) -> ChatResult:
    """The whole result. Raises the request's error, or RequestCancelled if the client went."""
    results: list[ChatResult] = []

    async def collect() -> None:
        results.append(await stream.result())

    try:
        await unless_disconnected(collect(), receive)
    finally:
        if not results:
            stream.cancel()
    if not results:
        raise RequestCancelled("the client went away")
    return results[0]
