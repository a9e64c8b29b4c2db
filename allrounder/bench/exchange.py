"""One HTTP request, timed from its scheduled arrival rather than from when it was sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

import httpx2

from allrounder.bench.targets import Event, Target

_REJECTIONS = (429, 503)
_DONE = "[DONE]"


class End(StrEnum):
    OK = "ok"
    REJECTED = "rejected"
    ABANDONED = "abandoned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedExchange:
    """Outcome of one request; times are those of `time.perf_counter`.

    Attributes:
        due: when it should have been sent; every latency counts from here.
        first, last: first and last piece of text.
        num_tokens: generated tokens by the server's count, else the pieces of text.
        reason: why it was refused or failed, in the server's words or ours.
    """

    budget: float
    end: End
    due: float
    ended: float
    first: float | None = None
    last: float | None = None
    num_tokens: int = 0
    server_seconds: float | None = None
    reason: str | None = None

    @property
    def first_token_seconds(self) -> float | None:
        return None if self.first is None else self.first - self.due

    @property
    def seconds(self) -> float:
        return self.ended - self.due

    @property
    def seconds_per_token(self) -> float | None:
        """Between tokens after the first; None where there are fewer than two."""
        if self.first is None or self.last is None or self.num_tokens < 2:
            return None
        return (self.last - self.first) / (self.num_tokens - 1)


@dataclass(slots=True)
class _Seen:
    first: float | None = None
    last: float | None = None
    pieces: int = 0
    num_tokens: int | None = None
    server_seconds: float | None = None
    reason: str | None = None

    def take(self, event: Event) -> None:
        if event.text:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.pieces += 1
        if event.num_tokens is not None:
            self.num_tokens = event.num_tokens
        if event.server_seconds is not None:
            self.server_seconds = event.server_seconds


async def exchange(
    client: httpx2.AsyncClient,
    target: Target,
    body: bytes,
    *,
    budget: float,
    due: float,
    patience: float,
) -> TimedExchange:
    """Send one request and read its stream to the end; never raises for what the server does.

    Args:
        patience: seconds after `due` at which the client hangs up.
    """
    seen = _Seen()
    try:
        async with asyncio.timeout(max(due + patience - time.perf_counter(), 0)):
            end = await _converse(client, target, body, seen)
    except TimeoutError:
        end = End.ABANDONED
    except (httpx2.HTTPError, ValueError, LookupError, TypeError, AttributeError) as err:
        end, seen.reason = End.FAILED, type(err).__name__
    return TimedExchange(
        budget=budget,
        end=end,
        due=due,
        ended=time.perf_counter(),
        first=seen.first,
        last=seen.last,
        num_tokens=seen.pieces if seen.num_tokens is None else seen.num_tokens,
        server_seconds=seen.server_seconds,
        reason=seen.reason,
    )


async def _converse(client: httpx2.AsyncClient, target: Target, body: bytes, seen: _Seen) -> End:
    headers = {"content-type": "application/json", **target.headers}
    url = target.url.rstrip("/") + target.path
    async with client.stream("POST", url, content=body, headers=headers) as response:
        if response.status_code != httpx2.codes.OK:
            seen.reason = f"{response.status_code} {_code(await response.aread())}".strip()
            return End.REJECTED if response.status_code in _REJECTIONS else End.FAILED
        async for data in _events(response):
            if data == _DONE:
                return End.OK
            event = target.read(json.loads(data))
            if event.error is not None:
                seen.reason = event.error
                return End.FAILED
            seen.take(event)
    seen.reason = "the stream broke off"
    return End.FAILED


async def _events(response: httpx2.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _code(body: bytes) -> str:
    """The `code` of an error envelope, where there is one."""
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""
