"""One request as its caller sees it: chunks from the engine's thread, then exactly one end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from allrounder.core import ChatRequest, ChatResult, TokenChunk
from allrounder.engine.scheduling.request import Event
from allrounder.errors import AllrounderError


class QueuedStream:
    """Satisfies `ChatStream`. Made on the event loop; fed through `deliver` on that same loop.

    Args:
        num_prompt: most tokens that the pruned prompt can have.
    """

    def __init__(
        self, request: ChatRequest, on_cancel: Callable[[str], None], *, num_prompt: int = 0
    ) -> None:
        self._request = request
        self._on_cancel = on_cancel
        self._num_tokens = num_prompt
        self._chunks: asyncio.Queue[TokenChunk | None] = asyncio.Queue()
        self._end: asyncio.Future[ChatResult] = asyncio.get_running_loop().create_future()

    @property
    def request(self) -> ChatRequest:
        return self._request

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    async def chunks(self) -> AsyncIterator[TokenChunk]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        await self.result()

    async def result(self) -> ChatResult:
        return await asyncio.shield(self._end)

    def cancel(self) -> None:
        if not self._end.done():
            self._on_cancel(self._request.id)

    def deliver(self, event: Event) -> None:
        if self._end.done():
            return
        if isinstance(event, TokenChunk):
            self._num_tokens += event.num_tokens
            self._chunks.put_nowait(event)
            return
        if isinstance(event, AllrounderError):
            self._end.set_exception(event)
            self._end.exception()
        else:
            num_prompt = event.shape.num_text + event.plan.num_kept
            self._num_tokens = num_prompt + event.num_generated
            self._end.set_result(event)
        self._chunks.put_nowait(None)
