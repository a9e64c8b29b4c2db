"""A real server under a little load, scraped by a real Prometheus: all that is asked has data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from allrounder.bench.own_server import own_server
from tests.deploy.expressions import alerts, drawn, recorded
from tests.deploy.live import Prometheus, make_traffic, running_prometheus
from tools.dashboard_plots import FIGURES, draw_figures

pytestmark = pytest.mark.timeout(300)

LOAD_SECONDS = 12.0
FLAGS = ("--threads", "1", "--embedded-redis")
WINDOW = "30s"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        own_server([*FLAGS, "--data-dir", str(folder / "data")]) as url,
        running_prometheus(url, folder) as prometheus,
    ):
        make_traffic(url, seconds=LOAD_SECONDS)
        yield prometheus


def without_data(prometheus: Prometheus, asked: Iterable[tuple[str, str]]) -> list[str]:
    return [place for place, text in asked if not prometheus.has_data(text)]


def test_the_server_is_scraped(prometheus: Prometheus) -> None:
    (series,) = prometheus.query('up{job="allrounder"}')
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (series["value"][1], target["lastError"]) == ("1", "")


def test_every_rule_is_evaluated_without_error(prometheus: Prometheus) -> None:
    found = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {each.place for each in [*recorded(), *alerts()]}
    assert [rule for rule in found if rule["health"] != "ok"] == []


def test_every_recording_rule_has_recorded(prometheus: Prometheus) -> None:
    names = [each.place for each in recorded()]
    assert len(names) >= 16
    assert without_data(prometheus, [(name, name) for name in names]) == []


def test_every_alert_would_see_what_it_watches(prometheus: Prometheus) -> None:
    asked = [
        (f"{each.place}: {side}", side) for each in alerts() for side in each.without_comparisons()
    ]
    assert len(asked) >= 10
    assert without_data(prometheus, asked) == []
    assert [each for each in prometheus.get("alerts")["alerts"] if each["state"] == "firing"] == []


def test_every_curve_of_the_dashboard_has_data(prometheus: Prometheus) -> None:
    asked = [(each.place, each.with_values(window=WINDOW)) for each in drawn()]
    assert len(asked) >= 40
    assert without_data(prometheus, asked) == []


def test_the_load_is_what_the_figures_say(prometheus: Prometheus) -> None:
    (saved,) = prometheus.query("instance:allrounder_flops_saved:ratio_rate5m")
    (skipped,) = prometheus.query("instance:allrounder_decoder_layers_skipped:ratio_rate5m")
    (errors,) = prometheus.query("instance:allrounder_http_errors:ratio_rate5m")
    assert 0.05 < float(saved["value"][1]) < 0.9
    assert 0 < float(skipped["value"][1]) < 0.5
    assert 0 < float(errors["value"][1]) < 0.5
    chats = prometheus.query('allrounder_http_requests_total{endpoint="/v1/chat"}')
    assert {each["metric"]["status"] for each in chats} == {"200", "400", "422", "504"}


def test_panels_can_be_drawn_from_what_it_answers(prometheus: Prometheus, tmp_path: Path) -> None:
    now = time.time()
    paths = draw_figures(prometheus, tmp_path, start=now - LOAD_SECONDS, end=now)
    assert [path.name for path in paths] == [f"dashboard-{name}.png" for name in FIGURES]
    assert all(path.stat().st_size > 10_000 for path in paths)
