"""Pairs are balanced and clear; the loss is the Bradley-Terry model that it claims to be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from allrounder.training.preferences import (
    action_log_prob,
    balanced_pairs,
    preference_loss,
    set_log_prob,
)

KL = st.lists(st.floats(0, 10), min_size=2, max_size=12)


def random_choices(*shape: int) -> torch.Tensor:
    return torch.rand(shape) < 0.5


@given(KL)
def test_every_action_serves_at_most_once_and_never_a_median(kl_nats: list[float]) -> None:
    pairs = balanced_pairs(kl_nats, min_gap=0.0)
    used = [idx for pair in pairs for idx in pair]
    assert len(pairs) == len(kl_nats) // 2
    assert len(set(used)) == len(used)
    if len(kl_nats) % 2:
        (left_out,) = set(range(len(kl_nats))) - set(used)
        assert kl_nats[left_out] == sorted(kl_nats)[len(kl_nats) // 2]


@given(KL, st.floats(0.01, 5))
def test_the_better_action_has_less_kl_by_at_least_the_gap(
    kl_nats: list[float], gap: float
) -> None:
    for good, bad in balanced_pairs(kl_nats, min_gap=gap):
        assert kl_nats[bad] - kl_nats[good] >= gap


def test_of_five_actions_the_best_two_meet_the_worst_two() -> None:
    assert balanced_pairs([0.3, 0.9, 0.1, 0.5, 0.7], min_gap=0.02) == [(2, 1), (0, 4)]


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_the_gap_of_two_actions_is_the_sum_of_logits_where_they_differ(
    num_choices: int, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(4, num_choices, dtype=torch.float64)
    good, bad = random_choices(4, num_choices), random_choices(4, num_choices)
    gap = set_log_prob(logits, good, "sum") - set_log_prob(logits, bad, "sum")
    assert_close(gap, (logits * (good.double() - bad.double())).sum(-1))
    mean_gap = set_log_prob(logits, good, "mean") - set_log_prob(logits, bad, "mean")
    assert_close(mean_gap, gap / num_choices)


def test_probabilities_of_all_actions_sum_to_one() -> None:
    logits = torch.randn(1, 5).expand(32, -1)
    every = torch.cartesian_prod(*[torch.tensor([False, True])] * 5)
    assert_close(set_log_prob(logits, every, "sum").exp().sum(), torch.tensor(1.0))


def test_layers_count_by_their_own_mean_and_weight() -> None:
    logits = torch.randn(3, 50), torch.randn(3, 4)
    action = random_choices(3, 50), random_choices(3, 4)
    for weight in (0.0, 1.0, 5.0):
        expected = set_log_prob(logits[0], action[0], "mean")
        expected = expected + weight * set_log_prob(logits[1], action[1], "mean")
        got = action_log_prob(logits, action, reduction="mean", layer_weight=weight)
        assert_close(got, expected)


def test_an_undecided_router_pays_log_two_and_a_right_one_less() -> None:
    zero = torch.zeros(3)
    assert_close(preference_loss(zero, zero, beta=1.0), torch.tensor(2.0).log())
    assert preference_loss(zero + 1, zero, beta=1.0) < preference_loss(zero, zero, beta=1.0)
    assert preference_loss(zero + 1, zero, beta=2.0) < preference_loss(zero + 1, zero, beta=1.0)
