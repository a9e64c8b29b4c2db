"""Estimates and their errors, beside what a hand computes."""

from __future__ import annotations

import math
import statistics

import pytest

from allrounder.measure.statistics import (
    bootstrapped,
    clustered_mean,
    difference,
    median_ratio,
    percentile,
    ratio_of_means,
    ratios,
    sample_mean,
    standard_error,
    turns,
)

MINE = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
THEIRS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
CLUSTERS = [0, 0, 1, 1, 2, 2]


def test_independent_draws_have_the_textbook_error() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    expected = statistics.pstdev(values) / math.sqrt(len(values))
    assert standard_error(values, range(8)) == pytest.approx(expected)
    assert standard_error(values, [0] * 8) == pytest.approx(0)


def test_a_paired_difference_is_the_one_computed_by_hand() -> None:
    # Differences 0 1 0 0 -1 1, mean 1/6; less the mean they sum by cluster to 2/3, -1/3, -1/3.
    found = difference(MINE, THEIRS, CLUSTERS)
    assert found.value == pytest.approx(1 / 6)
    assert found.stderr == pytest.approx(math.sqrt(4 / 9 + 1 / 9 + 1 / 9) / 6)
    assert found.n == 6


def test_pairs_are_the_first_items_that_both_have() -> None:
    assert difference(MINE, THEIRS[:4], CLUSTERS) == difference(MINE[:4], THEIRS[:4], CLUSTERS[:4])
    assert clustered_mean(MINE[:4], CLUSTERS).n == 4


def test_a_ratio_is_the_one_computed_by_hand() -> None:
    # 4/6 over 3/6; residuals a - 4/3 b sum by cluster to 2/3, -1/3, -1/3.
    found = ratio_of_means(MINE, THEIRS, CLUSTERS)
    assert found is not None
    assert found.value == pytest.approx(4 / 3)
    assert found.stderr == pytest.approx(2 * math.sqrt(4 / 9 + 1 / 9 + 1 / 9) / 6)
    assert ratio_of_means(MINE, [0.0] * 6, CLUSTERS) is None


def test_a_slow_round_does_not_change_a_ratio_of_medians() -> None:
    found = median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0])
    assert (found.value, found.stderr) == (0.5, 0)


def test_the_error_of_independent_items_has_the_unbiased_variance() -> None:
    found = sample_mean([1.0, 2.0, 4.0])
    assert found.value == pytest.approx(7 / 3)
    assert found.stderr == pytest.approx(statistics.stdev([1.0, 2.0, 4.0]) / math.sqrt(3))
    assert str(found) == "2.333 ± 0.882"
    assert sample_mean([3.0]).stderr == 0


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
    found = bootstrapped([0.0, 1.0])
    assert (found.value, found.n) == (0.5, 2)
    assert found.stderr == pytest.approx(math.sqrt(1 / 8), rel=0.05)
    assert bootstrapped([3.0, 3.0, 3.0]).stderr == 0


def test_one_value_says_nothing_of_its_error() -> None:
    assert math.isnan(bootstrapped([5.0]).stderr)
    assert median_ratio([5.0], [2.0]).stderr == 0


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([2.0, 8.0], [1.0, 4.0]) == [2.0, 2.0]


def test_settings_take_turns_and_each_comes_first_once() -> None:
    order = list(turns(3, num_rounds=3))
    assert [round_idx for round_idx, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "".join("abc"[idx] for _, idx in order) == "abcbcacab"
