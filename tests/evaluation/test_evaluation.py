"""Cells that can be believed: the grid, the errors, and the arithmetic over a runner."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pytest

from app.engine.fake import FakeRunner
from app.evaluation.base import Item
from app.evaluation.benchmarks import BENCHMARKS
from app.evaluation.benchmarks.demo import DemoItem
from app.evaluation.report import cells_of, standard_error, table_of
from app.evaluation.runner import Setting, evaluate, settings_of
from tests.tiny import noise_image


def _items(num: int) -> list[Item]:
    """The fake runner echoes the question: every other item accepts that."""
    return [
        Item(
            image=noise_image(idx),
            question=f"word {idx}",
            type=("even", "odd")[idx % 2],
            cluster=idx // 2,
            grade=partial(_grade, idx),
        )
        for idx in range(num)
    ]


def _grade(idx: int, answer: str) -> bool:
    return idx % 2 == 0 and answer == f"word {idx}"


def test_none_is_run_at_budget_1_only() -> None:
    grid = settings_of(["none", "par"], [1, 0.5])
    assert grid == [
        Setting(strategy="none", budget=1),
        Setting(strategy="par", budget=1),
        Setting(strategy="par", budget=0.5),
    ]


def test_independent_draws_have_the_textbook_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    expected = statistics.pstdev(values) / math.sqrt(len(values))
    assert standard_error(values, range(8)) == pytest.approx(expected)
    assert standard_error(values, [0] * 8) == pytest.approx(0)


def test_cells_hold_what_the_contract_names() -> None:
    items = _items(20)
    settings = settings_of(["none", "fake"], [1, 0.7])
    trials = evaluate(FakeRunner(), items, settings, timed_rounds=2)
    cells = cells_of("made-up", items, trials)
    assert [(cell["strategy"], cell["budget"]) for cell in cells] == [
        ("none", 1),
        ("fake", 1),
        ("fake", 0.7),
    ]
    dense, pruned = cells[0], cells[2]
    assert dense["accuracy"] == pruned["accuracy"] == 0.5
    assert dense["by_type"]["even"]["accuracy"] == 1
    assert dense["loyalty"] == pruned["loyalty"] == 1
    assert dense["n"] == 20
    assert dense["flops_ratio"] == 1
    assert 0.5 < pruned["flops_ratio"] <= 0.7
    assert pruned["kv_bytes"] < dense["kv_bytes"]
    assert dense["paired"]["fake"] == {"difference": 0, "stderr": 0}
    assert dense["latency_ratio"] == 1
    assert table_of(cells).count("\n") == 4


def test_a_budget_that_a_strategy_cannot_meet_is_left_out() -> None:
    trials = evaluate(FakeRunner(), _items(3), [Setting(strategy="fake", budget=0.01)])
    assert trials == []


def test_the_demo_benchmark_repeats_itself_and_grades_its_own_answers() -> None:
    benchmark = BENCHMARKS["demo"](None)
    first, again = (benchmark.items(limit=30, seed=3) for _ in range(2))
    assert [(i.question, i.image.digest) for i in first] == [
        (i.question, i.image.digest) for i in again
    ]
    other = benchmark.items(limit=30, seed=4)
    assert first[0].image.digest != other[0].image.digest
    assert len(first) == 30
    for item in first:
        assert not item.grade("")
        assert not item.grade("an elephant")


def test_the_demo_benchmark_grades_descriptions_by_attribute_and_sums_them_up_exactly() -> None:
    benchmark = BENCHMARKS["demo"](None)
    items = [item for item in benchmark.items(limit=60, seed=3) if item.type == "describe"]
    right = [item.source.answers[0] for item in items if isinstance(item, DemoItem)]
    halves = [" ".join(answer.split()[:3]) for answer in right]
    assert len(right) == len(items) > 2
    assert [item.grade(answer) for item, answer in zip(items, right, strict=True)] == [1] * len(
        items
    )
    partly = [item.grade(answer) for item, answer in zip(items, halves, strict=True)]
    assert all(0 <= grade < 1 for grade in partly)
    assert any(partly)
    assert benchmark.summary(items, right) == {"describe (exact)": 1}
    assert benchmark.summary(items, halves) == {"describe (exact)": 0}
