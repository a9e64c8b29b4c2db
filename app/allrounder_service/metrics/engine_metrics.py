"""Updates of the metrics: the engine's events, its gauges, and HTTP responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from allrounder.core import ChatRequest, ChatResult, FinishReason, Priority, Timing
from allrounder.errors import AllrounderError, DeadlineExceeded, RequestCancelled
from allrounder_service.metrics.definitions import (
    CACHE_HITS_HELP,
    CACHE_QUERIES_HELP,
    ENGINE_STATE_HELP,
    KV_USAGE_HELP,
    NAMESPACE,
    NUM_RUNNING_HELP,
    NUM_WAITING_FOR_KV_HELP,
    NUM_WAITING_HELP,
    OTHER,
    REJECTIONS,
    STATUSES,
    Instruments,
)


class EngineMetrics:
    """The engine's observer, called on its thread and its callers'; it only updates metrics.

    Latencies are observed for interactive requests only: batch requests wait by design and would
    hide the latency of interactive ones.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._latencies = instruments.latencies
        self._traffic = instruments.traffic
        self._compute = instruments.compute

    def rejected(self, error: AllrounderError) -> None:
        reason = error.code if error.code in REJECTIONS else OTHER
        self._traffic.rejections.labels(reason).inc()

    def admitted(self, request: ChatRequest, *, queue_seconds: float) -> None:
        if _is_interactive(request) and not request.plan_only:
            self._latencies.queue.observe(queue_seconds)

    def preempted(self, request: ChatRequest) -> None:
        self._traffic.preemptions.inc()

    def first_token(self, request: ChatRequest, *, seconds: float) -> None:
        if _is_interactive(request):
            self._latencies.first_token.observe(seconds)

    def next_token(self, request: ChatRequest, *, seconds: float) -> None:
        if _is_interactive(request):
            self._latencies.next_token.observe(seconds)

    def finished(self, request: ChatRequest, result: ChatResult) -> None:
        """A request for a plan only generates nothing and is not counted."""
        if request.plan_only:
            return
        self._traffic.ends.labels(result.finish_reason).inc()
        self._traffic.prompt_tokens.inc(result.shape.num_text + result.cost.num_kept)
        self._traffic.generated_tokens.inc(result.num_generated)
        if _is_interactive(request):
            self._latencies.request.observe(result.timing.total)
        self._observe_stages(result.timing)
        self._count_compute(result)

    def failed(self, request: ChatRequest, error: AllrounderError, *, timing: Timing) -> None:
        if not request.plan_only:
            self._traffic.ends.labels(_reason(error)).inc()

    def _observe_stages(self, timing: Timing) -> None:
        for stage, seconds in (
            ("encode", timing.encode),
            ("plan", timing.plan),
            ("prefill", timing.prefill),
            ("decode", timing.decode),
        ):
            self._latencies.stage.labels(stage).observe(seconds)

    def _count_compute(self, result: ChatResult) -> None:
        compute, cost, plan = self._compute, result.cost, result.plan
        compute.flops_dense.inc(cost.dense)
        compute.flops_executed.inc(cost.executed)
        compute.flops_router.inc(cost.router)
        compute.flops_saved.labels("tokens").inc(cost.saved_by_tokens)
        compute.flops_saved.labels("layers").inc(cost.saved_by_layers)
        compute.visual_tokens.labels("encoded").inc(plan.num_visual)
        compute.visual_tokens.labels("kept").inc(plan.num_kept)
        compute.visual_tokens.labels("dropped").inc(plan.num_visual - plan.num_kept)
        num_passes = max(result.num_generated, 1)
        compute.layer_passes.labels("run").inc(num_passes * plan.num_layers_run)
        compute.layer_passes.labels("skipped").inc(num_passes * len(plan.skipped_layers))
        compute.budget_limit.observe(result.budget_limit)
        compute.budget_spent.observe(cost.prefill_ratio)


class HttpMetrics:
    """Counts HTTP responses. `endpoint` is a route template, never a path sent by a client."""

    def __init__(self, instruments: Instruments) -> None:
        self._traffic = instruments.traffic

    def answered(self, endpoint: str, status: int, *, seconds: float) -> None:
        label = str(status) if status in STATUSES else OTHER
        self._traffic.http.labels(endpoint, label).inc()
        self._traffic.http_seconds.labels(endpoint).observe(seconds)


class StatusView(Protocol):
    """The part of the engine's status that gauges export."""

    @property
    def state(self) -> str: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_waiting_for_kv(self) -> int: ...
    @property
    def kv_bytes_held(self) -> int: ...
    @property
    def kv_bytes_limit(self) -> int: ...
    @property
    def encoder_cache_queries(self) -> int: ...
    @property
    def encoder_cache_hits(self) -> int: ...


class EngineGauges(Collector):
    """Reads the engine's status at every scrape, so no figure is stale.

    Args:
        states: every state that the engine can be in.
    """

    def __init__(self, status: Callable[[], StatusView], states: Iterable[str]) -> None:
        self._status = status
        self._states = tuple(states)

    def describe(self) -> Iterator[Metric]:
        yield from _gauges()
        yield from _cache_counters(0, 0)
        yield self._state_set("")

    def collect(self) -> Iterator[Metric]:
        now = self._status()
        usage = now.kv_bytes_held / now.kv_bytes_limit if now.kv_bytes_limit else 0.0
        yield from _gauges(now.num_running, now.num_waiting, now.num_waiting_for_kv, usage)
        yield from _cache_counters(now.encoder_cache_queries, now.encoder_cache_hits)
        yield self._state_set(now.state)

    def _state_set(self, current: str) -> Metric:
        family = GaugeMetricFamily(
            f"{NAMESPACE}_engine_state", ENGINE_STATE_HELP, labels=("state",)
        )
        for state in self._states:
            family.add_metric((state,), float(state == current))
        return family


def _gauges(
    num_running: int = 0, num_waiting: int = 0, num_for_kv: int = 0, kv_usage: float = 0.0
) -> Iterator[Metric]:
    prefix = f"{NAMESPACE}_"
    waiting = f"{prefix}num_requests_waiting"
    yield GaugeMetricFamily(f"{prefix}num_requests_running", NUM_RUNNING_HELP, num_running)
    yield GaugeMetricFamily(waiting, NUM_WAITING_HELP, num_waiting)
    yield GaugeMetricFamily(f"{waiting}_for_kv", NUM_WAITING_FOR_KV_HELP, num_for_kv)
    yield GaugeMetricFamily(f"{prefix}kv_cache_usage_ratio", KV_USAGE_HELP, kv_usage)


def _cache_counters(queries: int, hits: int) -> Iterator[Metric]:
    prefix = f"{NAMESPACE}_encoder_cache_"
    yield CounterMetricFamily(f"{prefix}queries", CACHE_QUERIES_HELP, queries)
    yield CounterMetricFamily(f"{prefix}hits", CACHE_HITS_HELP, hits)


def _is_interactive(request: ChatRequest) -> bool:
    return request.priority is Priority.INTERACTIVE


def _reason(error: AllrounderError) -> FinishReason:
    if isinstance(error, RequestCancelled):
        return FinishReason.CANCELLED
    if isinstance(error, DeadlineExceeded):
        return FinishReason.DEADLINE
    return FinishReason.ERROR
