"""Baselines, λ by share, anchors, prompt weights and diagnostics against numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo.algo import (
    anchor_mask,
    between_share,
    gae,
    group_advantages,
    leave_one_out,
    length_adaptive_lambda,
    mixture_share,
    mixture_sums,
    prompt_weights,
    relative_lambda,
    share_lambda,
    terminal_rewards,
    turn_start_mask,
    within_group_auc,
)

ONE_GROUP = torch.zeros(4, dtype=torch.long)
OUTCOMES = torch.tensor([1.0, 0.0, 0.0, 1.0])


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-6)


# --------------------------------------------------------------------------- leave one out, residual critic


def test_the_leave_one_out_mean_is_that_of_the_other_responses():
    close(leave_one_out(OUTCOMES, ONE_GROUP), [1 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_a_group_of_equal_outcomes_leaves_nothing_to_learn():
    # exactly nothing: in floats the mean of seven times .1 need not be .1, and a gradient of rounding errors is one
    for outcome in (1.0, 0.1, 0.7, -0.3):
        same = torch.full((8,), outcome)
        assert (same - leave_one_out(same, torch.zeros(8, dtype=torch.long))).eq(0).all()


def test_invalid_members_do_not_count_and_get_the_mean_of_the_valid_ones():
    outcomes = torch.tensor([1.0, 0.0, math.nan, 1.0])
    valid = torch.tensor([True, True, False, True])
    close(leave_one_out(outcomes, ONE_GROUP, valid=valid), [0.5, 1.0, 2 / 3, 0.5])


def test_a_response_without_others_gets_0():
    close(leave_one_out(torch.tensor([1.0, 1.0]), torch.tensor([3, 9])), [0.0, 0.0])


def test_groups_may_stand_in_any_order():
    mixed = leave_one_out(torch.tensor([1.0, 5.0, 0.0, 7.0]), torch.tensor([2, 8, 2, 8]))
    close(mixed, [0.0, 7.0, 1.0, 5.0])


@pytest.mark.parametrize(
    ("critic", "lam", "expected"),
    [
        # R - b = 2/3;  δ = [-.3, .5, .6666667 - .3]
        ([0.1, -0.2, 0.3], 0.9, [0.447, 0.83, 0.3666667]),
        ([0.0, 0.0, 0.0], 0.9, [0.54, 0.6, 0.6666667]),
        ([0.0, 0.0, 0.0], 1.0, [0.6666667, 0.6666667, 0.6666667]),
    ],
)
def test_a_residual_critic_equals_an_absolute_one_with_the_mean_added(critic, lam, expected):
    mask, residual = torch.ones(1, 3, dtype=torch.bool), torch.tensor([critic])
    b = leave_one_out(OUTCOMES, ONE_GROUP)[:1]
    by_residual = gae(terminal_rewards(OUTCOMES[:1] - b, mask), residual, mask, lam=lam)
    by_value = gae(terminal_rewards(OUTCOMES[:1], mask), residual + b, mask, lam=lam)
    close(by_residual, [expected])
    close(by_value, [expected])


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_a_critic_of_zero_at_lambda_1_is_rloo(seed, n):
    outcomes = torch.rand(2 * n, generator=torch.Generator().manual_seed(seed))
    groups = torch.arange(2 * n) // n
    # (G / (G - 1))·(R - mean) is R - the mean of the others
    rloo = group_advantages(outcomes, groups, std=None) * n / (n - 1)
    torch.testing.assert_close(outcomes - leave_one_out(outcomes, groups), rloo, atol=1e-6, rtol=1e-5)


# --------------------------------------------------------------------------- fitted mixture


def test_the_mixtures_share_is_the_least_squares_fit_clipped_to_1():
    outcomes, b = torch.tensor([1.0, 1, 0, 0]), torch.tensor([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    values, mask = torch.tensor([[0.8], [0.6], [0.3], [0.1]]), torch.ones(4, 1, dtype=torch.bool)
    product, square = mixture_sums(outcomes, b, values, mask)
    assert product / square == pytest.approx(1.4925373)
    assert mixture_share(product, square) == 1.0
    assert mixture_share(-product, square) == 0.0
    assert mixture_share(0.25 * square, square) == pytest.approx(0.25)


def test_a_critic_that_only_repeats_the_mean_gets_no_share():
    outcomes, b = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    values, mask = b[:, None].expand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert mixture_share(*mixture_sums(outcomes, b, values, mask)) == 0.0


def test_tokens_outside_the_mask_do_not_move_the_share():
    outcomes, b = torch.tensor([1.0, 0.0]), torch.tensor([0.2, 0.4])
    values, mask = torch.tensor([[0.7, math.nan], [0.3, 9.0]]), torch.tensor([[True, False], [True, False]])
    assert mixture_sums(outcomes, b, values, mask) == mixture_sums(outcomes, b, values[:, :1], mask[:, :1])


# --------------------------------------------------------------------------- λ by share


@pytest.mark.parametrize(
    ("length", "k", "lam"),
    [
        (1, 0.5, 0.5),
        (2, 0.5, 0.7071068),
        (100, 0.5, 0.9930925),
        (400, 0.5, 0.9982686),
        (8000, 0.5, 0.9999134),
        (100, 0.082, 0.9752998),
    ],
)
def test_lambda_by_share(length, k, lam):
    close(share_lambda(torch.tensor([length]), k), [lam])


def test_the_share_and_alpha_agree_at_every_length():
    lengths = torch.tensor([100.0, 400.0, 16384.0], dtype=torch.float64)
    by_alpha = length_adaptive_lambda(lengths, 1.5)
    torch.testing.assert_close(share_lambda(lengths, math.exp(-1 / 1.5)), by_alpha, atol=5e-5, rtol=0)
    assert float(by_alpha[0] ** 100) == pytest.approx(0.513, abs=0.004)


def test_the_relative_rule_is_the_share_over_one_token_less():
    lengths = torch.tensor([2.0, 100.0])
    close(relative_lambda(lengths, 0.5), [0.5, 0.9930230])
    torch.testing.assert_close(relative_lambda(lengths, 0.5), share_lambda(lengths - 1, 0.5))


def test_a_lambda_near_1_is_not_rounded_to_1_in_low_precision():
    lam = share_lambda(torch.tensor([8000.0], dtype=torch.bfloat16), 0.5)
    assert lam.dtype == torch.float32
    assert float(lam) < 1


# --------------------------------------------------------------------------- anchors, turns, prompt weights


@pytest.mark.parametrize(("length", "expected"), [(1, [0]), (2, [0, 1]), (10, [3, 6, 9]), (100, [30, 60, 90])])
def test_anchors_stand_at_fractions_of_the_length(length, expected):
    mask = torch.ones(1, length, dtype=torch.bool)
    assert anchor_mask(mask, (0.3, 0.6, 0.9)).nonzero()[:, 1].tolist() == expected


def test_anchors_count_only_tokens_of_the_mask():
    mask = torch.tensor([[True, False, True, True, False, True], [False] * 6])
    assert anchor_mask(mask, (0.5, 1.0)).nonzero().tolist() == [[0, 3], [0, 5]]


def test_anchors_at_every_token_are_the_mask():
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    assert torch.equal(anchor_mask(mask, [i / 12 for i in range(1, 13)]), mask)


def test_turn_starts_are_tokens_with_a_gap_before_them():
    mask = torch.tensor([[True, True, False, True, False, False, True], [False] * 7])
    assert turn_start_mask(mask).nonzero().tolist() == [[0, 0], [0, 3], [0, 6]]


def test_prompts_whose_outcomes_hardly_differ_weigh_more():
    outcomes = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0])
    weights = prompt_weights(outcomes, torch.arange(12) // 4, floor=0.25)
    close(weights[::4], [0.8337789, 0.7220737, 1.4441474])
    assert weights.view(3, 4).std(dim=1).max() == 0
    assert float(weights.mean()) == pytest.approx(1)


# --------------------------------------------------------------------------- diagnostics


def test_the_share_of_variance_between_prompts():
    outcomes = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    assert float(between_share(outcomes, torch.arange(12) // 4)) == pytest.approx(0.2222222)
    assert float(between_share(outcomes, torch.arange(12))) == pytest.approx(1)
    assert math.isnan(float(between_share(torch.full((3,), 0.1), torch.arange(3))))


def test_auc_counts_pairs_within_mixed_groups_only():
    values = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2, 0.3])
    right = torch.tensor([True, False, True, False, True, True])
    # group 0: won; group 1: a tie; group 2 is not mixed, whatever lies between the groups
    assert float(within_group_auc(values, right, torch.tensor([0, 0, 1, 1, 2, 2]))) == pytest.approx(0.75)
    assert math.isnan(float(within_group_auc(values, right, torch.arange(6))))


def test_auc_is_blind_to_what_differs_between_prompts():
    right, groups = torch.tensor([True, False, True, False]), torch.tensor([0, 0, 1, 1])
    values = torch.tensor([0.3, 0.2, 0.8, 0.9])
    shifted = values + torch.tensor([10.0, 10.0, -10.0, -10.0])
    assert float(within_group_auc(values, right, groups)) == float(within_group_auc(shifted, right, groups)) == 0.5
