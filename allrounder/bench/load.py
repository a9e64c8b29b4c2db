"""Load on a server: an open loop with Poisson arrivals, and a closed loop of clients.

Arrivals and requests are drawn before the run, from a seed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import httpx2

from allrounder.bench.exchange import TimedExchange, exchange
from allrounder.bench.targets import LoadRequest, Target

Tick = Callable[[], object]
_LEAD_SECONDS = 0.05
QUESTIONS = (
    "What is in the middle of the picture?",
    "Which colour covers most of it?",
    "Describe the picture in one sentence.",
    "Is there anything in the upper left corner?",
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """All exchanges of one run and the seconds from its start to the last end."""

    exchanges: tuple[TimedExchange, ...]
    seconds: float


def poisson_arrivals(rate: float, *, duration: float, seed: int) -> list[float]:
    """Seconds from the start of each arrival of a Poisson process, all before `duration`."""
    draw, at = Random(f"arrivals-{seed}-{rate:g}"), 0.0
    arrivals = []
    while (at := at + draw.expovariate(rate)) < duration:
        arrivals.append(at)
    return arrivals


def draw_requests(
    count: int, *, budgets: Sequence[float], num_images: int, seed: int
) -> list[LoadRequest]:
    """The same seed gives the same mix, whatever answers it."""
    draw = Random(f"asks-{seed}")
    return [
        LoadRequest(
            image=draw.randrange(num_images),
            question=draw.choice(QUESTIONS),
            budget=draw.choice(list(budgets)),
        )
        for _ in range(count)
    ]


def make_client() -> httpx2.AsyncClient:
    """Without limits on connections and without timeouts."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(timeout=None, limits=limits, trust_env=False)


async def open_loop(
    client: httpx2.AsyncClient,
    target: Target,
    requests: Sequence[LoadRequest],
    arrivals: Sequence[float],
    *,
    max_tokens: int,
    patience: float,
    tick: Tick,
) -> Load:
    """Send each request at its arrival time, whether or not earlier ones have been answered."""
    bodies = [target.body(request, max_tokens=max_tokens) for request in requests]
    started = time.perf_counter() + _LEAD_SECONDS

    async def send(body: bytes, request: LoadRequest, due: float) -> TimedExchange:
        found = await exchange(
            client, target, body, budget=request.budget, due=due, patience=patience
        )
        tick()
        return found

    tasks = []
    for body, request, at in zip(bodies, requests, arrivals, strict=True):
        await asyncio.sleep(max(started + at - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(send(body, request, started + at)))
    exchanges = tuple(await asyncio.gather(*tasks))
    return Load(exchanges=exchanges, seconds=time.perf_counter() - started)


async def closed_loop(
    client: httpx2.AsyncClient,
    target: Target,
    request: LoadRequest,
    *,
    num_clients: int,
    num_each: int,
    max_tokens: int,
    patience: float,
    tick: Tick,
) -> Load:
    """Clients that repeat the same request as soon as it is answered."""
    body = target.body(request, max_tokens=max_tokens)

    async def client_loop() -> list[TimedExchange]:
        found = []
        for _ in range(num_each):
            found.append(
                await exchange(
                    client,
                    target,
                    body,
                    budget=request.budget,
                    due=time.perf_counter(),
                    patience=patience,
                )
            )
            tick()
        return found

    started = time.perf_counter()
    of_clients = await asyncio.gather(*(client_loop() for _ in range(num_clients)))
    return Load(
        exchanges=tuple(found for each in of_clients for found in each),
        seconds=time.perf_counter() - started,
    )
