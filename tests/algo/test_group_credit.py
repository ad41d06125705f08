"""The group baseline worked by hand: whose rewards enter a group's mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo.algo import group_advantages, informative_groups

NAN = float("nan")
SAME = torch.zeros(4, dtype=torch.long)
ROOT3 = 1.7320508

# rewards: population std, sample std, mean only, leave one out
TABLE = {
    # mean .5, Σ(R - .5)² = 1: population std sqrt(1/4), sample std sqrt(1/3)
    (1, 0, 0, 1): (
        [1, -1, -1, 1],
        [0.8660254, -0.8660254, -0.8660254, 0.8660254],
        [0.5, -0.5, -0.5, 0.5],
        2 / 3,
    ),
    # mean .25, Σ = .5625 + 3·.0625 = .75
    (1, 0, 0, 0): ([ROOT3] + [-ROOT3 / 3] * 3, [1.5, -0.5, -0.5, -0.5], [0.75, -0.25, -0.25, -0.25], 1),
    (1, 1, 1, 0): ([ROOT3 / 3] * 3 + [-ROOT3], [0.5, 0.5, 0.5, -1.5], [0.25, 0.25, 0.25, -0.75], 1 / 3),
    (1, -1, -1, 1): ([1, -1, -1, 1], [0.8660254, -0.8660254, -0.8660254, 0.8660254], [1, -1, -1, 1], 4 / 3),
    (1, 1, 1, 1): ([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], 0),
}


@pytest.mark.parametrize("rewards", TABLE)
def test_group_advantages_match_the_table(rewards):
    population, sample, mean_only, first_left_out = TABLE[rewards]
    given_rewards = torch.tensor(rewards, dtype=torch.float32)
    for std, expected in (("population", population), ("sample", sample), (None, mean_only)):
        advantages = group_advantages(given_rewards, SAME, std=std)
        torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float32))
    # mean-only is (G-1)/G of leaving oneself out: R_0 minus the mean of the others
    left_out = given_rewards[0] - given_rewards[1:].mean()
    assert left_out.item() == pytest.approx(first_left_out)
    torch.testing.assert_close(group_advantages(given_rewards, SAME, std=None)[0], 3 / 4 * left_out)


def test_the_population_standard_deviation_is_the_default():
    torch.testing.assert_close(
        group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), SAME), torch.tensor([1.0, -1.0, -1.0, 1.0])
    )


def test_groups_may_be_any_integers_in_any_order():
    # group -7: (1, 0) -> ±1; group 10**12: (1, 0, 0, 0) -> sqrt 3 and -1/sqrt 3; group 3: alone -> 0
    groups = torch.tensor([10**12, -7, 10**12, 3, 10**12, -7, 10**12])
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    expected = torch.tensor([ROOT3, 1.0, -ROOT3 / 3, 0.0, -ROOT3 / 3, -1.0, -ROOT3 / 3])
    torch.testing.assert_close(group_advantages(rewards, groups), expected)


@pytest.mark.parametrize("std", ["population", "sample", None])
def test_a_group_of_one_response_has_advantage_zero(std):
    assert group_advantages(torch.tensor([1.0, 0.3]), torch.tensor([0, 1]), std=std).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("std", ["population", "sample", None])
@given(reward=st.floats(-10, 10, width=32), size=st.integers(1, 17))
def test_equal_rewards_have_advantage_exactly_zero(std, reward, size):
    # in floats the mean of n times .1 need not be .1; divided by an equally tiny std that would become ±1
    rewards = torch.full((size,), reward)
    assert group_advantages(rewards, torch.zeros(size, dtype=torch.long), std=std).eq(0).all()


def test_invalid_responses_are_left_out_of_the_baseline():
    # pitfall 8: without the two invalid ones this is (1, 0) -> ±1; their rewards may be anything
    rewards = torch.tensor([1.0, NAN, 0.0, 1e9])
    valid = torch.tensor([True, False, True, False])
    assert group_advantages(rewards, SAME, valid=valid).tolist() == [1.0, 0.0, -1.0, 0.0]
    assert group_advantages(rewards, SAME, valid=valid, std=None).tolist() == [0.5, 0.0, -0.5, 0.0]
    # sample std of (1, 0): sqrt((.25 + .25) / 1) = .7071068
    sample = group_advantages(rewards, SAME, valid=valid, std="sample")
    torch.testing.assert_close(sample, torch.tensor([0.7071068, 0.0, -0.7071068, 0.0]))


def test_responses_without_trainable_tokens_are_left_out_of_the_group_mean():
    # pitfall 9: (1, 0) and an empty response of reward 0. Counted, it would pull the mean to 1/3.
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    advantages = group_advantages(
        torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long), std=None, valid=mask.any(1)
    )
    assert advantages.tolist() == [0.5, -0.5, 0.0]


def test_a_group_without_valid_responses_has_advantages_zero():
    rewards, groups = torch.tensor([NAN, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    valid = torch.tensor([False, False, True, True])
    assert group_advantages(rewards, groups, valid=valid).tolist() == [0.0, 0.0, 1.0, -1.0]


def test_a_nan_reward_changes_its_own_group_only():
    rewards, groups = torch.tensor([NAN, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    advantages = group_advantages(rewards, groups)
    assert advantages[:2].isnan().all()
    assert advantages[2:].tolist() == [1.0, -1.0]


@given(st.integers(0, 2**31), st.integers(1, 30), st.sampled_from(["population", "sample", None]))
def test_group_advantages_agree_with_one_group_at_a_time(seed, count, std):
    rng = torch.Generator().manual_seed(seed)
    rewards, groups = torch.randn(count, generator=rng), torch.randint(-2, 3, (count,), generator=rng)
    valid = torch.rand(count, generator=rng) < 0.8
    advantages = group_advantages(rewards, groups, std=std, valid=valid)
    assert advantages[~valid].eq(0).all()
    for group in groups.unique():
        members = (groups == group) & valid
        if members.sum() > 1:
            alone = rewards[members]
            expected = alone - alone.mean()
            if std:
                expected = expected / alone.std(correction=int(std == "sample"))
            torch.testing.assert_close(advantages[members], expected, atol=1e-4, rtol=1e-4)


def test_empty_rewards_give_empty_advantages():
    nothing = torch.zeros(0)
    assert group_advantages(nothing, nothing.long()).shape == (0,)
    assert informative_groups(nothing.bool(), nothing.long()).shape == (0,)


def test_dynamic_sampling_keeps_the_groups_with_right_and_wrong_answers():
    # group 5: right and wrong; group 6: all right; group 7: all wrong; group 8: one response
    groups = torch.tensor([5, 6, 7, 8, 5, 6, 7])
    right = torch.tensor([True, True, False, True, False, True, False])
    assert informative_groups(right, groups).tolist() == [True, False, False, False, True, False, False]


def test_an_invalid_verdict_does_not_make_a_group_informative():
    groups, right = torch.tensor([1, 1, 2, 2, 2]), torch.tensor([True, False, True, False, False])
    valid = torch.tensor([True, False, True, True, False])
    # group 1: its only valid response is right; group 2 is mixed even without the invalid one
    assert informative_groups(right, groups, valid).tolist() == [False, False, True, True, True]
    # an invalid "right" does not count either
    assert informative_groups(right, groups, ~right).tolist() == [False] * 5
