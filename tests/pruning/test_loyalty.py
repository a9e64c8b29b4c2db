"""Promises lie under what was measured, hold for every milder size, and end where the grid does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allrounder.pruning.allocate import CalibratedLoyalty, Split

SKIPS, TOKENS = (0.0, 0.25, 0.5), (0.1, 0.4, 1.0)
ratios = st.floats(0, 1)


def _loyalty(mean, error=((0.0,) * 3,) * 3, margin=1.0) -> CalibratedLoyalty:
    return CalibratedLoyalty.under(
        skip_ratios=SKIPS, token_ratios=TOKENS, mean=mean, standard_error=error, margin=margin
    )


def test_a_promise_lies_some_standard_errors_under_the_mean() -> None:
    mean = ((0.5, 0.9, 1.0), (0.4, 0.8, 0.9), (0.3, 0.3, 0.3))
    error = ((0.1, 0.02, 0.0), (0.1, 0.05, 0.02), (0.2, 0.2, 0.2))
    promised = _loyalty(mean, error, margin=2.0).promised
    assert promised[0] == pytest.approx((0.3, 0.86, 1.0))
    assert promised[1] == pytest.approx((0.2, 0.7, 0.86))
    assert promised[2] == (0.0, 0.0, 0.0)


def test_a_milder_size_promises_what_a_harsher_one_does() -> None:
    mean = ((0.5, 0.6, 1.0), (0.4, 0.8, 0.8), (0.3, 0.3, 0.9))
    assert _loyalty(mean).promised == ((0.5, 0.8, 1.0), (0.4, 0.8, 0.9), (0.3, 0.3, 0.9))


def test_between_measured_sizes_the_harsher_speaks_and_beyond_them_nothing_is_promised() -> None:
    loyalty = _loyalty(((0.5, 0.9, 1.0), (0.4, 0.8, 0.9), (0.3, 0.3, 0.3)))
    assert loyalty.at(Split(token_ratio=0.4, skip_ratio=0.25)) == 0.8
    assert loyalty.at(Split(token_ratio=0.99, skip_ratio=0.0)) == 0.9
    assert loyalty.at(Split(token_ratio=1.0, skip_ratio=0.0)) == 1
    assert loyalty.at(Split(token_ratio=0.39, skip_ratio=0.24)) == 0.4
    assert loyalty.at(Split(token_ratio=0.09, skip_ratio=0.0)) == 0
    assert loyalty.at(Split(token_ratio=1.0, skip_ratio=0.51)) == 0


@settings(max_examples=50)
@given(st.lists(st.lists(ratios, min_size=3, max_size=3), min_size=3, max_size=3), ratios, ratios)
def test_more_tokens_and_fewer_skips_never_promise_less(mean, one, other) -> None:
    loyalty, skip = _loyalty(mean), 0.3
    few, many = sorted((one, other))
    tokens = [loyalty.at(Split(token_ratio=ratio, skip_ratio=skip)) for ratio in (few, many)]
    skips = [loyalty.at(Split(token_ratio=0.5, skip_ratio=ratio)) for ratio in (few, many)]
    assert tokens[0] <= tokens[1]
    assert skips[0] >= skips[1]
