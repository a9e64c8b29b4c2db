"""The dashboard: made by its generator, whole, and found by Grafana where compose mounts it."""

from __future__ import annotations

import itertools
import re

import yaml  # type: ignore[import-untyped]

from allrounder_service.metrics.definitions import OTHER, STATUSES
from tests.deploy.expressions import DASHBOARD, DEPLOY, ROOT, dashboard, drawn, panels
from tools.dashboard import rendered

PROVISIONING = DEPLOY / "grafana" / "provisioning"


def test_the_file_is_what_its_generator_writes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == rendered()


def test_panels_do_not_overlap_and_have_ids_and_titles_of_their_own() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    squares = [
        {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        for at in (panel["gridPos"] for panel in everything)
    ]
    assert all(x < 24 for square in squares for x, _ in square)
    assert all(not one & other for one, other in itertools.combinations(squares, 2))


def test_every_panel_reads_the_chosen_data_source_and_every_curve_the_selection() -> None:
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "job", "instance"]
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[
            : len(panel["targets"])
        ]
    for each in drawn():
        num_series = each.text.count("allrounder_")
        assert each.text.count('job=~"$job", instance=~"$instance"') == num_series > 0, each.place


def test_the_panel_of_errors_counts_no_answer_that_is_none() -> None:
    (panel,) = (panel for panel in panels() if panel["title"] == "HTTP errors by endpoint")
    found = re.search(r'status!~"([^"]+)"', panel["targets"][0]["expr"])
    assert found is not None
    fine = {status for status in STATUSES if re.fullmatch(found[1], str(status))}
    assert fine == {status for status in STATUSES if status < 400} == {200, 304}
    assert not re.fullmatch(found[1], OTHER)


def test_grafana_is_given_the_data_source_and_the_folder_that_compose_mounts() -> None:
    source = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())
    provider = yaml.safe_load((PROVISIONING / "dashboards" / "allrounder.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    folder = provider["providers"][0]["options"]["path"]
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    interval = source["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == config["global"]["scrape_interval"]
