"""Statistics against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from allrounder.bench.timing import estimate, interleaved, percentile, ratios


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 10), (50, 25), (90, 37), (99, 39.7), (100, 40)]
)
def test_a_percentile_lies_between_the_closest_ranks(percent: float, expected: float) -> None:
    assert percentile([40, 10, 30, 20], percent) == pytest.approx(expected)


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 50))
    assert percentile([7.0], 99) == 7


def test_the_error_of_a_median_is_that_of_its_bootstrap() -> None:
    # Medians of resampled (0, 1) are 0, 1/2, 1 with chances 1/4, 1/2, 1/4: variance 1/8.
    found = estimate([0.0, 1.0])
    assert (found.value, found.n) == (0.5, 2)
    assert found.stderr == pytest.approx(math.sqrt(1 / 8), rel=0.05)
    assert estimate([3.0, 3.0, 3.0]).stderr == 0


def test_one_value_says_nothing_of_its_error() -> None:
    assert estimate([5.0]).stderr is None


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 8.0], [1.0, 4.0]) == [2.0, 2.0]


def test_settings_take_turns_and_each_comes_first_once() -> None:
    order: list[str] = []
    ticks: list[None] = []

    def recorded(name: str) -> str:
        order.append(name)
        return name * 2

    settings = {name: lambda name=name: recorded(name) for name in "abc"}
    found = interleaved(settings, rounds=3, tick=lambda: ticks.append(None))
    assert "".join(order) == "abcbcacab"
    assert found == {name: [name * 2] * 3 for name in "abc"}
    assert len(ticks) == 9
