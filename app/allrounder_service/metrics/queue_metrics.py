"""Metrics of batch jobs: a census of Redis, taken at each scrape.

No figure is reported by a worker, so a crashed worker cannot leave a stale one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from allrounder_service.metrics.definitions import (
    JOBS_DEAD_HELP,
    JOBS_DEPTH_HELP,
    JOBS_LEASE_LOST_HELP,
    JOBS_OLDEST_HELP,
    JOBS_REDELIVERED_HELP,
    JOBS_REDIS_UP_HELP,
    JOBS_RUNNING_HELP,
    JOBS_STALE_HELP,
    JOBS_WORKERS_HELP,
    NAMESPACE,
)


class CensusView(Protocol):
    """The part of a census that is exported."""

    @property
    def waiting(self) -> Mapping[str, int]:
        """Waiting lines by lane, with an entry for every lane."""
        ...

    @property
    def running(self) -> int: ...
    @property
    def oldest_seconds(self) -> float: ...
    @property
    def workers(self) -> int: ...
    @property
    def dead(self) -> int: ...
    @property
    def stats(self) -> Mapping[str, int]: ...


_PREFIX = f"{NAMESPACE}_jobs_"


class JobsGauges(Collector):
    """Exports the latest census; without one, only that Redis is away.

    Before the first update, and where no queue is configured, it exports nothing.
    """

    def __init__(self) -> None:
        self._has_queue = False
        self._census: CensusView | None = None

    def update(self, census: CensusView | None) -> None:
        """None: Redis did not answer."""
        self._has_queue, self._census = True, census

    def clear(self) -> None:
        """No queue is configured, so none is away."""
        self._has_queue, self._census = False, None

    def describe(self) -> Iterator[Metric]:
        yield from _families(None)
        yield _redis_up(False)

    def collect(self) -> Iterator[Metric]:
        if self._census is not None:
            yield from _families(self._census)
        if self._has_queue:
            yield _redis_up(self._census is not None)


def _redis_up(up: bool) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}redis_up", JOBS_REDIS_UP_HELP, int(up))


def _families(census: CensusView | None) -> Iterator[Metric]:
    """Without a census only the names."""
    depth = GaugeMetricFamily(f"{_PREFIX}queue_depth", JOBS_DEPTH_HELP, labels=["lane"])
    for lane, count in (census.waiting if census else {}).items():
        depth.add_metric([lane], count)
    yield depth
    gauges = {
        "running": (JOBS_RUNNING_HELP, census.running if census else 0),
        "oldest_age_seconds": (JOBS_OLDEST_HELP, census.oldest_seconds if census else 0),
        "dead_letters": (JOBS_DEAD_HELP, census.dead if census else 0),
        "workers": (JOBS_WORKERS_HELP, census.workers if census else 0),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(_PREFIX + name, text, value)
    counters = {
        "lease_lost": JOBS_LEASE_LOST_HELP,
        "stale_results": JOBS_STALE_HELP,
        "redelivered": JOBS_REDELIVERED_HELP,
    }
    for name, text in counters.items():
        value = census.stats.get(name, 0) if census else 0
        yield CounterMetricFamily(_PREFIX + name, text, value)
