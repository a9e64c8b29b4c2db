"""Metric names and labels are committed; events move what they should."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from allrounder.budget import parse_budget
from allrounder.core import ChatRequest, FinishReason, Priority, Timing
from allrounder.engine.fake import FakeRunner, FakeRunning
from allrounder.engine.protocols import EngineState, EngineStatus
from allrounder.errors import (
    AllrounderError,
    DeadlineExceeded,
    InternalError,
    NotFound,
    QueueFull,
    RequestCancelled,
    StartupError,
)
from allrounder.images import decode_image
from allrounder_service.jobs.queue import Census, LaneCount
from allrounder_service.jobs.redis_keys import LANES
from allrounder_service.metrics.definitions import build_instruments, render
from allrounder_service.metrics.engine_metrics import EngineGauges, EngineMetrics, HttpMetrics
from allrounder_service.metrics.queue_metrics import JobsGauges
from tests.engine.driving import whole
from tests.intake.pictures import red

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"
STATUS = EngineStatus(
    state=EngineState.READY,
    num_running=2,
    num_waiting=3,
    num_waiting_for_kv=1,
    kv_bytes_held=25,
    kv_bytes_limit=100,
    num_steps=0,
)


CENSUS = Census(
    lanes={lane: LaneCount(waiting=1, running=2) for lane in LANES},
    oldest_seconds=3.0,
    lines=16,
    backlog=7,
    workers=4,
    dead=5,
    stats={"lease_lost": 6},
)


def status():
    return STATUS


class Measured:
    def __init__(self):
        self.instruments = build_instruments()
        self.instruments.registry.register(EngineGauges(status, EngineState))
        self.jobs = JobsGauges()
        self.jobs.update(CENSUS)
        self.instruments.registry.register(self.jobs)
        self.engine = EngineMetrics(self.instruments)
        self.http = HttpMetrics(self.instruments)

    def value(self, name, **labels):
        return self.instruments.registry.get_sample_value(f"allrounder_{name}", labels)


@pytest.fixture
def measured():
    return Measured()


def finished(**fields):
    """A request and its result, made by the fake runner."""
    request = ChatRequest(
        id="x",
        images=(decode_image(red()),),
        question="a b c",
        budget=parse_budget({"tokens": 4, "layers": 3}),
        **fields,
    )
    runner = FakeRunner()
    (running,) = runner.begin([runner.prepare(request)])
    assert isinstance(running, FakeRunning)
    while True:
        (outcome,) = runner.step(whole([running]))
        if outcome.result is not None:
            timing = Timing(encode=0.1, plan=0.2, prefill=0.3, decode=0.4, total=1.0)
            return request, replace(outcome.result, timing=timing)


def test_names_types_and_labels_are_the_committed_ones(measured):
    measured.http.answered("/livez", 200, seconds=0.1)
    lines = []
    for metric in measured.instruments.registry.collect():
        labels = {key for sample in metric.samples for key in sample.labels} - {"le"}
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(" ".join([name, metric.type, *sorted(labels)]))
    text = "\n".join(sorted(lines)) + "\n"
    if os.environ.get("UPDATE_GOLDENS"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_finished_request_moves_tokens_flops_and_layers(measured):
    request, result = finished()
    measured.engine.finished(request, result)
    cost = result.cost
    assert measured.value("request_success_total", reason="stop") == 1
    assert measured.value("prompt_tokens_total") == result.shape.num_text + 4
    assert measured.value("generation_tokens_total") == 3
    assert measured.value("visual_tokens_total", state="encoded") == 16
    assert measured.value("visual_tokens_total", state="dropped") == 12
    assert measured.value("decoder_layer_passes_total", state="run") == 9
    assert measured.value("decoder_layer_passes_total", state="skipped") == 3
    assert measured.value("flops_dense_total") == cost.dense
    saved = [measured.value("flops_saved_total", source=source) for source in ("tokens", "layers")]
    assert sum(saved) - measured.value("flops_router_total") == cost.saved
    assert measured.value("flops_executed_total") == cost.dense - cost.saved
    assert measured.value("stage_seconds_sum", stage="decode") == 0.4
    assert measured.value("request_budget_spent_ratio_sum") == cost.prefill_ratio


FELT = (
    "request_queue_time_seconds_count",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
)
WORK = ("prompt_tokens_total", "generation_tokens_total", "flops_dense_total")


def test_latencies_are_those_of_callers_who_wait_and_work_is_everybodys(measured):
    def live_through(priority):
        request, result = finished(priority=priority)
        measured.engine.admitted(request, queue_seconds=9)
        measured.engine.first_token(request, seconds=9)
        measured.engine.next_token(request, seconds=9)
        measured.engine.finished(request, result)

    live_through(Priority.BATCH)
    work = [measured.value(name) for name in WORK]
    assert [measured.value(name) for name in FELT] == [0, 0, 0, 0]
    live_through(Priority.INTERACTIVE)
    assert [measured.value(name) for name in FELT] == [1, 1, 1, 1]
    assert [measured.value(name) for name in WORK] == [2 * each for each in work]
    assert measured.value("stage_seconds_count", stage="decode") == 2
    assert measured.value("request_success_total", reason="stop") == 2
    assert measured.value("request_budget_limit_ratio_count") == 2


def test_help_says_whose_latencies_are_shown(measured):
    body, _ = render(measured.instruments.registry, "")
    helps = [line for line in body.decode().splitlines() if line.startswith("# HELP")]
    for name in FELT:
        (line,) = [each for each in helps if name.removesuffix("_count") in each]
        assert "interactive requests only" in line


def _error_kinds(root=AllrounderError):
    for kind in root.__subclasses__():
        if not issubclass(kind, StartupError):
            yield kind
            yield from _error_kinds(kind)


def test_every_status_that_we_answer_with_has_a_label_of_its_own(measured):
    statuses = {kind.status for kind in _error_kinds()} | {200, 304}
    assert {409, 431} < statuses
    for status in statuses:
        measured.http.answered("/x", status, seconds=0.1)
        assert measured.value("http_requests_total", endpoint="/x", status=str(status)) == 1
    assert measured.value("http_requests_total", endpoint="/x", status="other") is None


def test_a_plan_without_generation_counts_as_no_request(measured):
    request, result = finished(plan_only=True)
    measured.engine.admitted(request, queue_seconds=1)
    measured.engine.finished(request, result)
    measured.engine.failed(request, InternalError("x"), timing=Timing())
    assert measured.value("flops_dense_total") == 0
    assert measured.value("request_queue_time_seconds_count") == 0
    assert sum(measured.value("request_success_total", reason=each) for each in FinishReason) == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestCancelled("x"), "cancelled"),
        (DeadlineExceeded("x"), "deadline"),
        (InternalError("x"), "error"),
    ],
)
def test_a_failed_request_ends_for_a_reason_of_the_closed_set(measured, error, reason):
    request, _ = finished()
    measured.engine.failed(request, error, timing=Timing())
    assert measured.value("request_success_total", reason=reason) == 1


def test_refusals_are_counted_by_code_and_unknown_ones_together(measured):
    measured.engine.rejected(QueueFull("x"))
    measured.engine.rejected(NotFound("x"))
    assert measured.value("admission_rejections_total", reason="queue_full") == 1
    assert measured.value("admission_rejections_total", reason="other") == 1


def test_gauges_are_read_from_the_engine_at_every_scrape(measured):
    assert measured.value("num_requests_running") == 2
    assert measured.value("num_requests_waiting") == 3
    assert measured.value("num_requests_waiting_for_kv") == 1
    assert measured.value("kv_cache_usage_ratio") == 0.25
    assert measured.value("engine_state", state="ready") == 1
    assert sum(measured.value("engine_state", state=each) for each in EngineState) == 1


def test_two_services_in_one_process_do_not_share_counters(measured):
    measured.engine.rejected(QueueFull("x"))
    assert Measured().value("admission_rejections_total", reason="queue_full") == 0


def test_help_says_that_the_dense_figure_is_counterfactual(measured):
    body, content_type = render(measured.instruments.registry, "")
    (line,) = [
        each for each in body.decode().splitlines() if "HELP allrounder_flops_dense_total" in each
    ]
    assert "analytic and counterfactual" in line
    assert content_type.startswith("text/plain")
    assert "_created" not in body.decode()


def test_batch_jobs_are_shown_as_they_were_counted(measured):
    assert measured.value("jobs_queue_depth", lane="retry") == 1
    assert measured.value("jobs_queue_depth", lane="batch") == 1 + 7
    assert measured.value("jobs_running") == 6
    assert measured.value("jobs_lease_lost_total") == 6
    assert measured.value("jobs_stale_results_total") == 0
    assert measured.value("jobs_redis_up") == 1


def test_before_anything_is_known_of_jobs_and_without_a_queue_nothing_is_said(measured):
    silent = JobsGauges()
    assert [*silent.collect()] == []
    measured.jobs.clear()
    assert [*measured.jobs.collect()] == []
    names = {family.name for family in measured.jobs.describe()}
    assert {"allrounder_jobs_redis_up", "allrounder_jobs_queue_depth"} <= names


def test_without_redis_nothing_is_said_of_jobs_but_that(measured):
    measured.jobs.update(None)
    assert measured.value("jobs_redis_up") == 0
    assert measured.value("jobs_running") is None
