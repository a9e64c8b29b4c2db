"""A grid that can be interrupted, searched and refused, over runners without a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allrounder.errors import InvalidField
from allrounder.evaluation import grid
from allrounder.evaluation.benchmarks import BENCHMARKS
from allrounder.evaluation.cell_store import CellStore
from allrounder.evaluation.command import GridJob, GridSpec
from allrounder.evaluation.defaults import Search
from allrounder.evaluation.report import write_report
from allrounder.evaluation.run import RunOptions
from allrounder.evaluation.subjects import Subject
from tests.evaluation.made_up import KnobRunner, MadeUp, run


def _cell(report: Any, strategy: str, budget: str) -> dict[str, Any]:
    (found,) = (
        cell
        for cell in report.cells
        if (cell["strategy"], cell["budget_label"]) == (strategy, budget)
    )
    return found


def test_cells_hold_what_the_contract_names() -> None:
    report = run(options=RunOptions(timed=2))
    assert [(cell["strategy"], cell["budget"]) for cell in report.cells] == [
        ("none", 1),
        ("fake", 1),
        ("fake", 0.7),
    ]
    dense, pruned = report.cells[0], report.cells[2]
    assert dense["accuracy"] == pruned["accuracy"] == 0.5
    assert dense["by_type"]["even"]["accuracy"] == 1
    assert dense["loyalty"] == pruned["loyalty"] == 1
    assert dense["n"] == 20
    assert dense["flops_ratio"] == dense["par_paper_ratio"] == 1
    assert 0.5 < pruned["flops_ratio"] <= 0.7
    assert pruned["kv_bytes"] < dense["kv_bytes"]
    assert dense["paired"]["fake"] == {"difference": 0, "stderr": 0, "n": 20}
    assert pruned["dense"] == {"difference": 0, "stderr": 0, "n": 20}
    assert pruned["retained"]["ratio"] == 1
    assert dense["latency_ratio"] == 1
    assert pruned["kl_nats"] is None


def test_a_router_under_test_brings_its_strategies_along() -> None:
    """The model's own folder may hold no router, and so no `par`."""
    without = KnobRunner()
    known = without.capabilities()
    (pruning,) = (info for info in known.strategies if info.name == "fake")
    with_router = KnobRunner()
    with_router.capabilities = lambda: replace(  # type: ignore[method-assign]
        known, strategies=(*known.strategies, replace(pruning, name="par"))
    )
    subjects = {
        None: Subject(quality=without, timed=without),
        "mine": Subject(quality=with_router, timed=with_router),
    }
    spec = GridSpec(
        strategies=("fake", "par"), budgets=("0.5",), limits={"*": 2}, routers={"mine": Path()}
    )
    job = GridJob(subjects, MadeUp(), spec)
    assert [setting.contender.label for setting in job.grid] == ["fake", "par@mine"]


def test_an_interrupted_grid_continues_and_reports_the_same_bytes(tmp_path: Path) -> None:
    budgets = ("1", "0.9", "0.8", "0.7")
    whole = KnobRunner()
    write_report(
        run(runner=whole, store=CellStore(tmp_path / "a/cells"), budgets=budgets), tmp_path / "a"
    )
    broken = KnobRunner(patience=55)
    with pytest.raises(KeyboardInterrupt):
        run(runner=broken, store=CellStore(tmp_path / "b/cells"), budgets=budgets)
    assert len(list((tmp_path / "b/cells").iterdir())) == 2
    rest = KnobRunner()
    write_report(
        run(runner=rest, store=CellStore(tmp_path / "b/cells"), budgets=budgets), tmp_path / "b"
    )
    assert len(whole.asked) == 100
    assert len(rest.asked) == 60
    for name in ("report.md", "report.json", "accuracy-flops.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_finished_grid_asks_nothing_and_times_nothing_anew(tmp_path: Path) -> None:
    options = RunOptions(timed=3)
    first = run(store=CellStore(tmp_path), options=options)
    runner = KnobRunner()
    again = run(runner=runner, store=CellStore(tmp_path), options=options)
    assert runner.asked == []
    assert again.cells == first.cells


@pytest.mark.parametrize(
    "change", [{"limits": {"*": 10}}, {"options": RunOptions(seed=1)}, {"budgets": ("1", "0.8")}]
)
def test_whatever_decides_a_cell_runs_it_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    run(store=CellStore(tmp_path))
    runner = KnobRunner()
    run(runner=runner, store=CellStore(tmp_path), **change)
    assert runner.asked


def test_a_budget_that_a_strategy_cannot_meet_is_reported_by_name(tmp_path: Path) -> None:
    for _ in range(2):
        report = run(store=CellStore(tmp_path), budgets=("0.7", "0.01"))
        assert [cell["budget"] for cell in report.cells] == [1, 0.7]
        (found,) = report.infeasible
        assert (found["strategy"], found["budget"]) == ("fake", 0.01)
        assert "smallest possible" in found["reason"]


def test_different_counts_are_paired_over_what_both_answered() -> None:
    report = run(limits={"none": 30, "*": 10})
    dense, pruned = _cell(report, "none", "1"), _cell(report, "fake", "1")
    assert (dense["n"], pruned["n"]) == (30, 10)
    assert dense["paired"]["fake"]["n"] == pruned["dense"]["n"] == 10


def _searched(runner: KnobRunner, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    search = Search(knob="layer", values=(1, 2, 3))
    monkeypatch.setattr(grid, "SEARCHES", {"fake": search})
    return run(runner=runner, strategies=("none", "fake:best"), budgets=("0.7",), **changes)


def test_the_best_knob_is_chosen_on_other_images_than_the_test(monkeypatch) -> None:
    runner = KnobRunner(good_layer=2)
    report = _searched(runner, monkeypatch)
    cell = _cell(report, "fake:best", "0.7")
    assert cell["options"] == {"layer": 2}
    assert cell["choice"]["value"] == 2
    assert cell["choice"]["tried"] == {"1": 0.0, "2": 0.5, "3": 0.0}
    assert cell["choice"]["num_items"] == 12
    tested = {item.image.digest for item in MadeUp().items(limit=20, seed=0)}
    knobs = [
        (request.images[0].digest in tested, request.budget.options["layer"])
        for request in runner.asked
        if request.budget.options
    ]
    assert sum(not is_test for is_test, _ in knobs) == 3 * 12
    assert {layer for is_test, layer in knobs if is_test} == {2}


def test_without_other_images_nothing_is_chosen(monkeypatch) -> None:
    benchmark_items = MadeUp.items
    monkeypatch.setattr(
        MadeUp, "items", lambda self, *, limit, seed: benchmark_items(self, limit=limit, seed=0)
    )
    report = _searched(KnobRunner(good_layer=2), monkeypatch)
    (found,) = report.infeasible
    assert "those of the test" in found["reason"]


def test_unknown_names_are_left_out_only_where_asked_for(caplog) -> None:
    with pytest.raises(InvalidField, match="unknown strategy 'parr'"):
        run(strategies=("none", "parr"))
    report = run(strategies=("none", "parr", "fake+parr", "fake"), skips_unknown=True)
    assert {cell["strategy"] for cell in report.cells} == {"none", "fake"}
    assert "parr is left out" in caplog.text


def test_a_smaller_limit_of_the_demo_benchmark_is_a_prefix_of_a_larger_one() -> None:
    benchmark = BENCHMARKS["demo"](None)
    few, many = (benchmark.items(limit=limit, seed=0) for limit in (13, 40))
    assert [(i.question, i.image.digest, i.cluster) for i in few] == [
        (i.question, i.image.digest, i.cluster) for i in many[:13]
    ]
