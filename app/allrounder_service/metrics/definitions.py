"""Every metric: name, help, labels and buckets, and their exposition; not when they change.

To add one: a line here, one call site, its line in `tests/golden/metrics.txt`, a dashboard panel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from allrounder.core import FinishReason, Stage

NAMESPACE = "allrounder"

FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STAGE_SECONDS = (*FAST_SECONDS, 30.0, 60.0, 120.0, 300.0)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

STATUSES = (
    *(200, 304),
    *(400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 431, 499),
    *(500, 503, 504),
)
REJECTIONS = (
    "budget_too_small",
    "context_length_exceeded",
    "deadline_exceeded",
    "draining",
    "engine_dead",
    "engine_oom",
    "invalid_field",
    "loading",
    "queue_full",
    "rate_limit_exceeded",
)
OTHER = "other"

NUM_RUNNING_HELP = "Requests whose tokens are being computed."
NUM_WAITING_HELP = "Admitted requests that wait for a place in the batch."
ENGINE_STATE_HELP = "1 for the state that the engine is in, 0 for the others."
NUM_WAITING_FOR_KV_HELP = (
    "Interactive requests that wait although a slot is free, because the KV cache has no room for "
    "the next one."
)
KV_USAGE_HELP = "Share of the KV cache that is in use."
CACHE_QUERIES_HELP = "Images looked for in the cache of encoded images."
CACHE_HITS_HELP = "Images that were found there and not encoded again."
JOBS_DEPTH_HELP = "Lines of batches that wait, by lane."
JOBS_RUNNING_HELP = "Lines of batches that are leased to a worker."
JOBS_OLDEST_HELP = "Age of the line that is claimed next; 0 where none waits."
JOBS_DEAD_HELP = (
    "Dead letters: lines given up because their worker crashed while it ran them alone."
)
JOBS_WORKERS_HELP = "Workers with a heartbeat within one lease."
JOBS_LEASE_LOST_HELP = "Lines reclaimed because their lease (visibility timeout) expired."
JOBS_STALE_HELP = "Results refused because their fencing token was stale."
JOBS_REDELIVERED_HELP = "Lines claimed that had been claimed before."
JOBS_REDIS_UP_HELP = (
    "Whether Redis answered at this scrape; without it the rest is missing. Where no queue is "
    "configured, this is missing too."
)
_INTERACTIVE = "interactive requests only, for batch ones wait by design"
_COUNTERFACTUAL = "analytic and counterfactual: computed by formula, never executed"


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Latencies of requests and stages."""

    first_token: Histogram
    next_token: Histogram
    request: Histogram
    queue: Histogram
    stage: Histogram


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests, tokens and how requests ended."""

    prompt_tokens: Counter
    generated_tokens: Counter
    ends: Counter
    rejections: Counter
    preemptions: Counter
    http: Counter
    http_seconds: Histogram


@dataclass(frozen=True, kw_only=True)
class Compute:
    """FLOPs and tokens computed, and those that the dense model would have computed."""

    flops_dense: Counter
    flops_executed: Counter
    flops_saved: Counter
    flops_router: Counter
    visual_tokens: Counter
    layer_passes: Counter
    budget_limit: Histogram
    budget_spent: Histogram


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """All metrics of one process, in a registry of their own."""

    registry: CollectorRegistry
    latencies: Latencies
    traffic: Traffic
    compute: Compute


def build_instruments() -> Instruments:
    """A new registry with every series of a closed label set already at 0."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    return Instruments(
        registry=registry,
        latencies=_latencies(_Factory(registry=registry)),
        traffic=_traffic(_Factory(registry=registry)),
        compute=_compute(_Factory(registry=registry)),
    )


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as text in the format that `accept` asks for -> body, content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


@dataclass(frozen=True, kw_only=True)
class _Factory:
    registry: CollectorRegistry

    def counter(
        self, name: str, help_text: str, label: str | None = None, values: Iterable[str] = ()
    ) -> Counter:
        labels = [] if label is None else [label]
        made = Counter(name, help_text, labels, namespace=NAMESPACE, registry=self.registry)
        for value in values:
            made.labels(value)
        return made

    def histogram(
        self,
        name: str,
        help_text: str,
        buckets: Sequence[float],
        label: str | None = None,
        values: Iterable[str] = (),
    ) -> Histogram:
        labels = [] if label is None else [label]
        made = Histogram(
            name, help_text, labels, namespace=NAMESPACE, buckets=buckets, registry=self.registry
        )
        for value in values:
            made.labels(value)
        return made


def _latencies(make: _Factory) -> Latencies:
    return Latencies(
        first_token=make.histogram(
            "time_to_first_token_seconds",
            f"From arrival to the first token; {_INTERACTIVE}.",
            SLOW_SECONDS,
        ),
        next_token=make.histogram(
            "inter_token_latency_seconds",
            f"From one token to the next; {_INTERACTIVE}.",
            FAST_SECONDS,
        ),
        request=make.histogram(
            "e2e_request_latency_seconds",
            f"From arrival to the end of the answer, where there was one; {_INTERACTIVE}.",
            SLOW_SECONDS,
        ),
        queue=make.histogram(
            "request_queue_time_seconds",
            f"From arrival to a place in the batch; {_INTERACTIVE}.",
            WAIT_SECONDS,
        ),
        stage=make.histogram(
            "stage_seconds",
            "Seconds that one request spent in a stage; a shared batch counts in full for each.",
            STAGE_SECONDS,
            "stage",
            Stage,
        ),
    )


def _traffic(make: _Factory) -> Traffic:
    return Traffic(
        prompt_tokens=make.counter(
            "prompt_tokens", "Prompt tokens of answered requests, counted after pruning."
        ),
        generated_tokens=make.counter(
            "generation_tokens", "Tokens generated for answered requests."
        ),
        ends=make.counter(
            "request_success",
            "Admitted requests that ended, by why they did.",
            "reason",
            FinishReason,
        ),
        rejections=make.counter(
            "admission_rejections",
            "Requests refused before they were queued, by the code of the error.",
            "reason",
            (*REJECTIONS, OTHER),
        ),
        preemptions=make.counter(
            "num_preemptions", "Running requests put back to be computed anew later."
        ),
        http=Counter(
            "http_requests",
            "HTTP requests answered, by route template and status.",
            ["endpoint", "status"],
            namespace=NAMESPACE,
            registry=make.registry,
        ),
        http_seconds=make.histogram(
            "http_request_seconds",
            "From the request's head to the end of its answer.",
            SLOW_SECONDS,
            "endpoint",
        ),
    )


def _compute(make: _Factory) -> Compute:
    return Compute(
        flops_dense=make.counter(
            "flops_dense",
            f"Decoder FLOPs that the unpruned model would have spent; {_COUNTERFACTUAL}.",
        ),
        flops_executed=make.counter(
            "flops_executed", "Decoder FLOPs spent, the router's included; by formula."
        ),
        flops_saved=make.counter(
            "flops_saved",
            "FLOPs not spent, by what was left out, before the router's own cost; "
            f"against a dense figure that is {_COUNTERFACTUAL}.",
            "source",
            ("tokens", "layers"),
        ),
        flops_router=make.counter("flops_router", "FLOPs spent on choosing what to prune."),
        visual_tokens=make.counter(
            "visual_tokens",
            "Visual tokens by what became of them: encoded = kept + dropped.",
            "state",
            ("encoded", "kept", "dropped"),
        ),
        layer_passes=make.counter(
            "decoder_layer_passes",
            "Decoder layers run or skipped, per request and forward pass.",
            "state",
            ("run", "skipped"),
        ),
        budget_limit=make.histogram(
            "request_budget_limit_ratio", "Share of dense prefill a request may spend.", SHARES
        ),
        budget_spent=make.histogram(
            "request_budget_spent_ratio", "Share of dense prefill a request spent.", SHARES
        ),
    )
