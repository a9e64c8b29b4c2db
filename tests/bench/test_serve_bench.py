"""Load on real sockets: counts add up, refusals and hang-ups are counted, a peer stands beside."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import pytest
from typer.testing import CliRunner

from allrounder.bench.exchange import End, TimedExchange
from allrounder.bench.load import Load, draw_requests, poisson_arrivals
from allrounder.bench.own_server import own_server
from allrounder.bench.serve_rows import Slo, beside_peer, closed_rows, goodput, open_rows
from allrounder.bench.targets import OpenAiApi, OwnApi
from allrounder.engine.fake import FakeRunner
from allrounder.errors import StartupError
from allrounder.measure.environment import without_keys
from allrounder_service.cli.main import cli
from tests.bench.conftest import fake_service, peer_app, served

pytestmark = pytest.mark.timeout(30)

SMALL = "--rates 40 --duration 0.5 --budgets 1,0.6 --clients-closed 1,3 --closed-requests 2"
ENDS = ("ok", "rejected", "abandoned", "failed")


def measured(*arguments: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(
        cli, ["bench", "serve", *SMALL.split(), "--distinct-images", "2", *arguments, "--json"]
    )
    assert result.exit_code == 0, result.stderr
    return {row["name"]: row for row in json.loads(result.stdout)["rows"]}


def counts(rows: dict[str, dict[str, Any]], prefix: str) -> dict[str, int]:
    found = {end: rows[f"{prefix}/{end}"]["value"] for end in ENDS}
    assert sum(found.values()) == rows[f"{prefix}/sent"]["value"]
    return found


def test_all_are_answered_under_a_load_that_the_service_can_bear(service: str) -> None:
    rows = measured("--url", service, "--slo-e2e-ms", "10000")
    sent = len(poisson_arrivals(40, duration=0.5, seed=0))
    assert counts(rows, "allrounder/rate-40") == {
        "ok": sent,
        "rejected": 0,
        "abandoned": 0,
        "failed": 0,
    }
    assert rows["allrounder/clients-3/sent"]["value"] == 6
    for kind in ("ttft", "tpot", "e2e"):
        p50, p99 = (rows[f"allrounder/rate-40/{kind}-p{each}"]["value"] for each in (50, 99))
        assert 0 < p50 <= p99
    ttft, e2e = (rows[f"allrounder/rate-40/{kind}-p50"]["value"] for kind in ("ttft", "e2e"))
    assert ttft < e2e
    goodput, throughput = (
        rows[f"allrounder/rate-40/{name}"]["value"] for name in ("goodput", "throughput")
    )
    assert goodput == throughput
    assert rows["allrounder/clients-1/http-over-engine-p50"]["value"] > 0
    wait = rows["allrounder/clients-3/wait-max"]
    assert wait["ratio"] == pytest.approx(wait["value"] / wait["baseline"])
    assert wait["ratio"] >= 1


def test_a_full_queue_is_counted_as_rejections() -> None:
    runner = FakeRunner(step_seconds=0.03)
    with fake_service(runner, max_running=1, max_queue=1) as url:
        rows = measured("--url", url, "--clients-closed", "")
    found = counts(rows, "allrounder/rate-40")
    assert found["rejected"] > 0
    assert found["ok"] > 0


def test_a_client_without_patience_abandons_and_meets_no_objective() -> None:
    with fake_service(FakeRunner(step_seconds=0.1), max_running=16) as url:
        rows = measured("--url", url, "--patience-s", "0.15", "--clients-closed", "")
    found = counts(rows, "allrounder/rate-40")
    assert found["abandoned"] == rows["allrounder/rate-40/sent"]["value"]
    assert rows["allrounder/rate-40/goodput"]["value"] == 0
    assert rows["allrounder/rate-40/ttft-p50"]["value"] is None


def test_a_peer_gets_the_same_load_through_its_own_api(service: str) -> None:
    seen: list[dict[str, Any]] = []
    with served(peer_app(step_seconds=0.002, num_tokens=5, seen=seen)) as peer:
        rows = measured("--url", service, "--peer-url", peer, "--peer-model", "m")
    assert counts(rows, "peer/rate-40")["ok"] == rows["allrounder/rate-40/sent"]["value"]
    beside = rows["beside-peer/rate-40/e2e-p50"]
    assert beside["value"] == rows["allrounder/rate-40/e2e-p50"]["value"]
    assert beside["baseline"] == rows["peer/rate-40/e2e-p50"]["value"]
    output, answered = rows["peer/rate-40/output"], rows["peer/rate-40/throughput"]
    assert output["value"] == pytest.approx(5 * answered["value"])
    (image, text) = seen[0]["messages"][0]["content"]
    assert seen[0]["model"] == "m"
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert text["text"]


def test_a_server_that_fails_every_request_is_counted_and_not_raised(service: str) -> None:
    arguments = ("--rates", "20", "--clients-closed", "")
    rows = measured("--url", service, "--peer-url", "http://127.0.0.1:9", *arguments)
    assert counts(rows, "peer/rate-20")["failed"] == rows["peer/rate-20/sent"]["value"] > 0


def test_why_requests_failed_is_said(service: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = measured("--url", service, "--budgets", "0.01", "--clients-closed", "")
    sent = len(poisson_arrivals(40, duration=0.5, seed=0))
    assert counts(rows, "allrounder/rate-40")["failed"] == sent
    assert f"{sent} of {sent}: 422 budget_too_small" in caplog.text


def test_no_server_at_all_is_said_in_one_line() -> None:
    result = CliRunner().invoke(cli, ["bench", "serve", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no answer from http://127.0.0.1:9" in result.stderr


@pytest.mark.timeout(60)
def test_without_an_address_a_server_is_started_and_ended() -> None:
    arguments = ("--model", "random:tiny", "--threads", "1", "--rates", "4", "--max-tokens", "3")
    rows = measured(*arguments, "--budgets", "1,0.9")
    assert counts(rows, "allrounder/rate-4")["failed"] == 0
    assert rows["allrounder/clients-1/ok"]["value"] == 2


def test_a_server_that_does_not_come_up_is_said_with_the_end_of_its_log() -> None:
    with pytest.raises(StartupError, match="max_queue"), own_server(["--max-queue", "0"]):
        pass


@pytest.mark.parametrize(
    "arguments", [("--rates", "0"), ("--budgets", "x"), ("--budgets", "")], ids=" ".join
)
def test_wrong_numbers_are_refused(arguments: tuple[str, str]) -> None:
    assert CliRunner().invoke(cli, ["bench", "serve", *arguments]).exit_code == 2


def test_arrivals_are_poisson_repeatable_and_within_the_time() -> None:
    arrivals = poisson_arrivals(50, duration=40, seed=3)
    assert arrivals == poisson_arrivals(50, duration=40, seed=3) == sorted(arrivals)
    assert arrivals != poisson_arrivals(50, duration=40, seed=4)
    assert max(arrivals) < 40
    # 2000 expected with a standard deviation of 45.
    assert len(arrivals) == pytest.approx(2000, abs=180)
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_asks_draw_from_every_budget_and_image() -> None:
    requests = draw_requests(300, budgets=(1.0, 0.5), num_images=3, seed=0)
    assert {request.image for request in requests} == {0, 1, 2}
    assert sum(request.budget == 1 for request in requests) == pytest.approx(150, abs=40)


def done(ttft: float, e2e: float, *, budget: float = 1.0, tokens: int = 3) -> TimedExchange:
    return TimedExchange(
        budget=budget,
        end=End.OK,
        due=0.0,
        ended=e2e,
        first=ttft,
        last=e2e,
        num_tokens=tokens,
        server_seconds=e2e - 0.01,
    )


LOST = TimedExchange(budget=1.0, end=End.REJECTED, due=0.0, ended=0.01)
LOAD = Load(exchanges=(done(0.1, 0.5), done(0.2, 0.6), done(0.3, 1.5), LOST), seconds=2.0)


def test_goodput_counts_complete_answers_within_the_objective() -> None:
    assert goodput(LOAD, Slo()) == 1.5
    assert goodput(LOAD, Slo(first_token_seconds=0.2)) == 1.0
    assert goodput(LOAD, Slo(seconds=0.55)) == 0.5
    assert goodput(LOAD, Slo(first_token_seconds=0.15, seconds=0.4)) == 0


def test_rows_are_those_worked_out_by_hand() -> None:
    rows = {row.name: row for row in open_rows("x", LOAD, Slo(seconds=1), offered=2.0)}
    assert rows["x/ttft-p50"].value == pytest.approx(200)
    assert rows["x/ttft-p90"].value == pytest.approx(280)
    assert rows["x/tpot-p50"].value == pytest.approx(200)
    assert rows["x/throughput"].ratio == pytest.approx(1.5 / 2)
    assert rows["x/goodput"].value == 1.0
    assert rows["x/output"].value == pytest.approx(9 / 2)
    assert (rows["x/sent"].value, rows["x/ok"].ratio, rows["x/rejected"].ratio) == (4, 0.75, 0.25)
    closed = {row.name: row for row in closed_rows("y", LOAD)}
    assert closed["y/http-over-engine-p50"].value == pytest.approx(10)
    assert closed["y/wait-max"].ratio == pytest.approx(1.5)


def test_a_mix_of_budgets_gets_a_row_each() -> None:
    mixed = Load(exchanges=(done(0.1, 0.5), done(0.3, 0.9, budget=0.25)), seconds=1.0)
    rows = {row.name: row.value for row in open_rows("x", mixed, Slo(), offered=2.0)}
    assert rows["x/budget-1/e2e-p50"] == pytest.approx(500)
    assert rows["x/budget-0.25/ttft-p50"] == pytest.approx(300)


def test_only_latencies_and_rates_are_compared_with_a_peer() -> None:
    own = open_rows("us/rate-1", LOAD, Slo(), offered=2.0)
    compared = {
        row.name: row
        for row in beside_peer(own, open_rows("peer/rate-1", LOAD, Slo(), offered=2.0))
    }
    assert compared["beside-peer/rate-1/ttft-p50"].ratio == 1
    assert "beside-peer/rate-1/sent" not in compared


def test_an_error_inside_a_stream_is_an_error_in_either_api() -> None:
    assert OwnApi(url="u").read({"error": {"code": "engine_dead"}}).error == "engine_dead"
    assert OpenAiApi(url="u", model="m").read({"error": {"code": None}}).error == "None"
    assert OpenAiApi(url="u", model="m").read({"choices": [{"delta": {}}]}).text == ""


def test_keys_do_not_reach_the_report() -> None:
    words = ["allrounder", "bench", "--api-key", "s", "--peer-key=t", "--rates", "1"]
    assert without_keys(words) == ["allrounder", "bench", "--rates", "1"]
