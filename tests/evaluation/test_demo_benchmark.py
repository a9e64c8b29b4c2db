"""The demo benchmark: repeatable questions, and grades of single answers."""

from __future__ import annotations

from allrounder.evaluation.benchmarks import BENCHMARKS
from allrounder.evaluation.benchmarks.demo import DemoItem


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
