"""What Prometheus is told of batch jobs: a census of Redis taken at the scrape itself.

A worker that died cannot make these figures lie, because none of them is a worker's.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.jobs import keys
from app.jobs.transitions import Census, LaneCount
from app.metrics.definitions import (
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

_PREFIX = f"{NAMESPACE}_jobs_"
_NOTHING = Census(
    lanes={lane: LaneCount(waiting=0, running=0) for lane in keys.LANES},
    oldest_seconds=0.0,
    lines=0,
    backlog=0,
    workers=0,
    dead=0,
)


class JobsGauges(Collector):
    """Shows the census that was noted last; without one it says only that Redis is away."""

    def __init__(self) -> None:
        self._census: Census | None = None

    def note(self, census: Census | None) -> None:
        """None: Redis did not answer."""
        self._census = census

    def describe(self) -> Iterator[Metric]:
        yield from _families(_NOTHING)
        yield _redis_up(False)

    def collect(self) -> Iterator[Metric]:
        if self._census is not None:
            yield from _families(self._census)
        yield _redis_up(self._census is not None)


def _redis_up(up: bool) -> Metric:
    return GaugeMetricFamily(f"{_PREFIX}redis_up", JOBS_REDIS_UP_HELP, int(up))


def _families(census: Census) -> Iterator[Metric]:
    depth = GaugeMetricFamily(f"{_PREFIX}queue_depth", JOBS_DEPTH_HELP, labels=["lane"])
    for lane, count in census.lanes.items():
        backlog = census.backlog if lane == keys.LANE_BATCH else 0
        depth.add_metric([lane], count.waiting + backlog)
    yield depth
    running = sum(count.running for count in census.lanes.values())
    gauges = {
        "running": (JOBS_RUNNING_HELP, running),
        "oldest_age_seconds": (JOBS_OLDEST_HELP, census.oldest_seconds),
        "dead_letters": (JOBS_DEAD_HELP, census.dead),
        "workers": (JOBS_WORKERS_HELP, census.workers),
    }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(_PREFIX + name, text, value)
    counters = {
        "lease_lost": JOBS_LEASE_LOST_HELP,
        "stale_results": JOBS_STALE_HELP,
        "redelivered": JOBS_REDELIVERED_HELP,
    }
    for name, text in counters.items():
        yield CounterMetricFamily(_PREFIX + name, text, census.stats.get(name, 0))
