"""`allrounder bench serve`: the service under open and closed load, and a peer under the same.

Both targets get the same arrivals and questions, one after the other, rate by rate.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from allrounder.bench.load import (
    QUESTIONS,
    Load,
    closed_loop,
    draw_requests,
    make_client,
    open_loop,
    poisson_arrivals,
)
from allrounder.bench.rows import BenchRow
from allrounder.bench.serve_rows import Slo, beside_peer, closed_rows, decode_row, open_rows
from allrounder.bench.targets import LoadRequest, OpenAiApi, OwnApi, Target
from allrounder.errors import StartupError

logger = logging.getLogger(__name__)

_MODEL_FACTS = ("id", "device", "dtype", "geometry", "router", "default_strategy", "visual_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Attributes:
    rates: requests a second of the open loop; each runs for `duration` seconds.
    clients: numbers of clients of the closed loop; each client sends `closed_requests`.
    patience: seconds after which a client hangs up.
    """

    rates: tuple[float, ...] = (1.0, 2.0, 4.0)
    duration: float = 20.0
    budgets: tuple[float, ...] = (1.0, 0.5, 0.25)
    clients: tuple[int, ...] = (1, 64)
    closed_requests: int = 4
    num_images: int = 8
    max_tokens: int = 16
    patience: float = 60.0
    slo: Slo = field(default_factory=Slo)
    seed: int = 0


class ServeBench:
    """Runs against `own`, and against `peer` if there is one."""

    def __init__(self, options: ServeOptions, own: OwnApi, peer: OpenAiApi | None = None) -> None:
        self._options = options
        self._targets: list[Target] = [own] if peer is None else [own, peer]
        self._arrivals = {
            rate: poisson_arrivals(rate, duration=options.duration, seed=options.seed)
            for rate in options.rates
        }

    @property
    def num_requests(self) -> int:
        opened = sum(len(arrivals) for arrivals in self._arrivals.values())
        closed = sum(1 + count * self._options.closed_requests for count in self._options.clients)
        return len(self._targets) * (opened + closed)

    async def facts(self) -> dict[str, Any]:
        """The server's model facts and the workload. Raises StartupError if it does not answer."""
        own, options = self._targets[0], self._options
        async with make_client() as client:
            try:
                response = await client.get(
                    f"{own.url.rstrip('/')}/v1/models", headers=dict(own.headers)
                )
                model = response.raise_for_status().json()["data"][0]
            except httpx2.HTTPError as err:
                raise StartupError(f"no answer from {own.url}: {type(err).__name__}") from err
        return {
            "model": {name: model.get(name) for name in _MODEL_FACTS},
            "peer": next((each.url for each in self._targets[1:]), None),
            "workload": (
                f"Poisson arrivals for {options.duration:g} s, seed {options.seed}; "
                f"{options.num_images} images of 336 x 336 pixels as JPEG; budgets "
                f"{', '.join(f'{budget:g}' for budget in options.budgets)} in equal shares; "
                f"{options.max_tokens} tokens at most; clients hang up after "
                f"{options.patience:g} s; latency counts from when a request was due"
            ),
            "slo": {
                "ttft_s": options.slo.first_token_seconds,
                "e2e_s": options.slo.seconds,
            },
        }

    async def run(self, *, tick: Callable[[], object] = lambda: None) -> list[BenchRow]:
        rows: list[BenchRow] = []
        async with make_client() as client:
            for rate in self._options.rates:
                found = [await self._open(client, each, rate, tick) for each in self._targets]
                rows += _joined(found)
            for count in self._options.clients:
                found = [await self._closed(client, each, count, tick) for each in self._targets]
                rows += _joined(found)
        return [*rows, decode_row()] if self._options.clients else rows

    async def _open(
        self,
        client: httpx2.AsyncClient,
        target: Target,
        rate: float,
        tick: Callable[[], object],
    ) -> list[BenchRow]:
        options, arrivals = self._options, self._arrivals[rate]
        requests = draw_requests(
            len(arrivals),
            budgets=options.budgets,
            num_images=options.num_images,
            seed=options.seed,
        )
        load = await open_loop(
            client,
            target,
            requests,
            arrivals,
            max_tokens=options.max_tokens,
            patience=options.patience,
            tick=tick,
        )
        prefix = f"{target.name}/rate-{rate:g}"
        _log_reasons(prefix, load)
        return open_rows(prefix, load, options.slo, offered=len(requests) / options.duration)

    async def _closed(
        self,
        client: httpx2.AsyncClient,
        target: Target,
        count: int,
        tick: Callable[[], object],
    ) -> list[BenchRow]:
        """One request first, so that the encoder knows the image."""
        options = self._options
        request = LoadRequest(image=0, question=QUESTIONS[0], budget=options.budgets[0])
        for num_clients, num_each in ((1, 1), (count, options.closed_requests)):
            load = await closed_loop(
                client,
                target,
                request,
                num_clients=num_clients,
                num_each=num_each,
                max_tokens=options.max_tokens,
                patience=options.patience,
                tick=tick,
            )
        prefix = f"{target.name}/clients-{count}"
        _log_reasons(prefix, load)
        return closed_rows(prefix, load)


def _log_reasons(prefix: str, load: Load) -> None:
    reasons = Counter(found.reason for found in load.exchanges if found.reason is not None)
    for reason, count in reasons.most_common():
        logger.warning("%s: %d of %d: %s", prefix, count, len(load.exchanges), reason)


def _joined(found: list[list[BenchRow]]) -> list[BenchRow]:
    rows = [row for each in found for row in each]
    return rows if len(found) == 1 else rows + beside_peer(*found)
