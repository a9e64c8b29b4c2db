"""Errors by cluster, paired differences and ratios, beside what a hand computes."""

from __future__ import annotations

import math
import statistics

import pytest

from allrounder.evaluation.statistics import (
    difference,
    estimate,
    median_ratio,
    ratio,
    standard_error,
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
    assert estimate(MINE[:4], CLUSTERS).n == 4


def test_a_ratio_is_the_one_computed_by_hand() -> None:
    # 4/6 over 3/6; residuals a - 4/3 b sum by cluster to 2/3, -1/3, -1/3.
    found = ratio(MINE, THEIRS, CLUSTERS)
    assert found is not None
    assert found.value == pytest.approx(4 / 3)
    assert found.stderr == pytest.approx(2 * math.sqrt(4 / 9 + 1 / 9 + 1 / 9) / 6)
    assert ratio(MINE, [0.0] * 6, CLUSTERS) is None


def test_a_slow_round_does_not_change_a_ratio_of_medians() -> None:
    found = median_ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0])
    assert (found.value, found.stderr) == (0.5, 0)
