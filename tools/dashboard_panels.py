"""What the dashboard shows: rows of panels, each with its expressions."""

from __future__ import annotations

from tools.dashboard_layout import Panel, Row
from tools.promql import by, gauge, mean, over, percentiles, quantile, rate, total

FLOPS_DENSE = total("flops_dense_total")
FLOPS_ROUTER = total("flops_router_total")
NET_SAVED = f"({total('flops_saved_total')} - {FLOPS_ROUTER})"
API = "=~/v1/.*"
INTERACTIVE = "Interactive requests only; batch ones wait by design."
SERVER_ERRORS = over(
    f"({total('http_requests_total', endpoint=API, status='=~5..')} or vector(0))",
    total("http_requests_total", endpoint=API),
)


def overview() -> Row:
    def stat(title: str, unit: str, expression: str, description: str = "") -> Panel:
        curves = (("", expression),)
        return Panel(
            title=title,
            unit=unit,
            curves=curves,
            description=description,
            kind="stat",
            width=4,
        )

    return Row(
        title="Overview",
        panels=(
            stat("Engines ready", "none", f"sum({gauge('engine_state', state='ready')})"),
            stat("Requests", "reqps", total("request_success_total")),
            stat("FLOPs saved, net", "percentunit", over(NET_SAVED, FLOPS_DENSE)),
            stat("Answers 5xx", "percentunit", SERVER_ERRORS),
            stat(
                "First token, p95",
                "s",
                quantile(0.95, "time_to_first_token_seconds"),
                INTERACTIVE,
            ),
            stat("Refusals", "reqps", total("admission_rejections_total")),
        ),
    )


def compute() -> Row:
    return Row(
        title="Compute",
        panels=(
            Panel(
                title="Decoder FLOPs",
                unit="none",
                curves=tuple(
                    (name, total(f"flops_{name}_total")) for name in ("dense", "executed", "router")
                ),
                description="Per second. Dense is analytic and counterfactual.",
            ),
            Panel(
                title="FLOPs saved by source",
                unit="none",
                curves=(("{{source}}", by("source", "flops_saved_total")),),
                description="Per second, before the router's own cost.",
                stacked=True,
            ),
            Panel(
                title="Share of dense FLOPs saved",
                unit="percentunit",
                curves=(
                    ("by {{source}}", _of_dense(by("source", "flops_saved_total"))),
                    ("net of choosing", over(NET_SAVED, FLOPS_DENSE)),
                ),
            ),
            Panel(
                title="Budget, asked and spent",
                unit="percentunit",
                curves=(
                    ("asked", mean("request_budget_limit_ratio")),
                    ("spent", mean("request_budget_spent_ratio")),
                ),
                description="Means, as shares of dense prefill FLOPs, the router's included.",
            ),
            *_parts(),
            *_work(),
        ),
    )


def _parts() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Visual tokens kept",
            unit="percentunit",
            curves=(
                (
                    "kept",
                    over(
                        total("visual_tokens_total", state="kept"),
                        total("visual_tokens_total", state="encoded"),
                    ),
                ),
            ),
        ),
        Panel(
            title="Decoder layers skipped",
            unit="percentunit",
            curves=(
                (
                    "skipped",
                    over(
                        total("decoder_layer_passes_total", state="skipped"),
                        total("decoder_layer_passes_total"),
                    ),
                ),
            ),
        ),
        Panel(
            title="Router cost",
            unit="percentunit",
            curves=(
                ("of executed FLOPs", over(FLOPS_ROUTER, total("flops_executed_total"))),
                (
                    "of stage time",
                    over(total("stage_seconds_sum", stage="plan"), total("stage_seconds_sum")),
                ),
            ),
        ),
    )


def _work() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Tokens",
            unit="none",
            curves=(
                ("prompt", total("prompt_tokens_total")),
                ("generated", total("generation_tokens_total")),
            ),
            description="Per second; prompts are counted after pruning.",
        ),
        Panel(
            title="Encoded images found in the cache",
            unit="percentunit",
            curves=(
                (
                    "hits",
                    over(total("encoder_cache_hits_total"), total("encoder_cache_queries_total")),
                ),
            ),
        ),
    )


def _of_dense(expression: str) -> str:
    return f"{expression} / on () group_left () {FLOPS_DENSE}"


def latency() -> Row:
    return Row(
        title="Latency",
        panels=(
            Panel(
                title="Time to first token",
                unit="s",
                curves=percentiles("time_to_first_token_seconds"),
                description=INTERACTIVE,
            ),
            Panel(
                title="Inter-token latency",
                unit="s",
                curves=percentiles("inter_token_latency_seconds"),
                description=INTERACTIVE,
            ),
            Panel(
                title="Whole request",
                unit="s",
                curves=percentiles("e2e_request_latency_seconds"),
                description=INTERACTIVE,
            ),
            Panel(
                title="Queue time",
                unit="s",
                curves=percentiles("request_queue_time_seconds"),
                description=INTERACTIVE,
            ),
            Panel(
                title="Stages, p95",
                unit="s",
                curves=(("{{stage}}", quantile(0.95, "stage_seconds", "stage")),),
                description="Of every request, batch ones too.",
            ),
            Panel(
                title="Stages, time of all requests",
                unit="s",
                curves=(("{{stage}}", by("stage", "stage_seconds_sum")),),
                description="Seconds per second; a shared batch counts in full for each request.",
                stacked=True,
            ),
        ),
    )


def engine() -> Row:
    return Row(
        title="Engine",
        panels=(
            Panel(
                title="Requests running and waiting",
                unit="none",
                width=6,
                curves=(
                    ("running {{instance}}", gauge("num_requests_running")),
                    ("waiting {{instance}}", gauge("num_requests_waiting")),
                ),
            ),
            Panel(
                title="Room for keys and values held",
                unit="percentunit",
                curves=(("{{instance}}", gauge("kv_cache_usage_ratio")),),
                width=6,
            ),
            Panel(
                title="Requests waiting for keys and values",
                unit="none",
                curves=(("{{instance}}", gauge("num_requests_waiting_for_kv")),),
                description="Interactive requests that wait for room although a slot is free.",
                width=6,
            ),
            Panel(
                title="Preemptions",
                unit="ops",
                width=6,
                curves=(("{{instance}}", by("instance", "num_preemptions_total")),),
            ),
        ),
    )


def errors() -> Row:
    return Row(
        title="Errors",
        panels=(
            Panel(
                title="HTTP answers by status",
                unit="reqps",
                curves=(("{{status}}", by("status", "http_requests_total")),),
                stacked=True,
            ),
            Panel(
                title="HTTP errors by endpoint",
                unit="reqps",
                curves=(
                    (
                        "{{endpoint}} {{status}}",
                        by("endpoint, status", "http_requests_total", status="!~[23].."),
                    ),
                ),
            ),
            Panel(
                title="HTTP, p95 by endpoint",
                unit="s",
                curves=(("{{endpoint}}", quantile(0.95, "http_request_seconds", "endpoint")),),
            ),
            Panel(
                title="Ends by reason",
                unit="reqps",
                curves=(("{{reason}}", by("reason", "request_success_total")),),
                stacked=True,
                width=12,
            ),
            Panel(
                title="Refusals by code",
                unit="reqps",
                curves=(("{{reason}}", by("reason", "admission_rejections_total")),),
                stacked=True,
                width=12,
            ),
        ),
    )


def jobs() -> Row:
    """Every process reads the same Redis, so the largest figure is taken, never the sum."""

    def curve(legend: str, name: str) -> tuple[str, str]:
        return legend, f"max({gauge(f'jobs_{name}')})"

    def changes(legend: str, name: str) -> tuple[str, str]:
        return legend, f"max({rate(f'jobs_{name}_total')})"

    return Row(
        title="Batch jobs",
        panels=(
            Panel(
                title="Jobs waiting by lane",
                unit="none",
                curves=(("{{lane}}", f"max by (lane) ({gauge('jobs_queue_depth')})"),),
            ),
            Panel(
                title="Jobs running, and workers",
                unit="none",
                curves=(curve("running", "running"), curve("workers", "workers")),
            ),
            Panel(
                title="Oldest waiting job", unit="s", curves=(curve("age", "oldest_age_seconds"),)
            ),
            Panel(
                title="Jobs done again",
                unit="ops",
                curves=(
                    changes("leases lost", "lease_lost"),
                    changes("delivered again", "redelivered"),
                    changes("stale results refused", "stale_results"),
                ),
            ),
            Panel(
                title="Dead letters", unit="none", curves=(curve("dead letters", "dead_letters"),)
            ),
            Panel(
                title="Redis reached",
                unit="none",
                curves=(("{{instance}}", gauge("jobs_redis_up")),),
            ),
        ),
    )


ROWS = (overview(), compute(), latency(), engine(), errors(), jobs())
