"""The length penalty worked by hand, and where the outcome of a response goes."""

import torch

from vapo.algo import soft_overlong_punishment, terminal_rewards

NAN = float("nan")


def test_soft_overlong_punishment_matches_dapos_numbers():
    # L_max 20,480, L_cache 4,096: (16384 - |y|) / 4096, so 16385 -> -1/4096
    lengths = torch.tensor([1, 16384, 16385, 17408, 18432, 20000, 20480, 20481])
    expected = [0.0, 0.0, -0.000244140625, -0.25, -0.5, -0.8828125, -1.0, -1.0]
    assert soft_overlong_punishment(lengths, 20480, 4096).tolist() == expected


def test_soft_overlong_punishment_matches_the_toy_numbers():
    # L_max 20, L_cache 4; at 21 the formula without its last case would give -1.25
    lengths = torch.tensor([16, 17, 18, 19, 20, 21])
    assert soft_overlong_punishment(lengths, 20, 4).tolist() == [0.0, -0.25, -0.5, -0.75, -1.0, -1.0]


def test_the_reward_is_on_the_last_trainable_token():
    # pitfall 2: the last token is masked (row 1), there is a hole (row 2)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [False, True, False, True]])
    rewards = terminal_rewards(torch.tensor([1.0, -1.0, 0.5]), mask)
    assert rewards.tolist() == [[0.0, 0.0, 0.0, 1.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]]


def test_a_response_without_trainable_tokens_gets_no_reward():
    mask = torch.tensor([[False, False], [True, False]])
    rewards = terminal_rewards(torch.tensor([NAN, 1.0]), mask, bootstrap=torch.tensor([NAN, 0.0]))
    assert rewards.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_the_outcome_occurs_exactly_once_for_every_mask():
    # pitfall 11: the outcome is one number per response, apart from any token mask
    masks = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [True, False, True]])
    assert terminal_rewards(torch.ones(4), masks).sum(1).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_a_bootstrap_of_zero_equals_a_finished_response():
    # pitfall 20: a response that ended by itself bootstraps nothing, also at the limit; the caller passes 0
    mask = torch.ones(2, 3, dtype=torch.bool)
    rewards = terminal_rewards(torch.tensor([1.0, 0.0]), mask, bootstrap=torch.tensor([0.0, 0.7]))
    torch.testing.assert_close(rewards[:, -1], torch.tensor([1.0, 0.7]))
    assert rewards[:, :-1].eq(0).all()


def test_low_precision_outcomes_become_float32():
    rewards = terminal_rewards(torch.tensor([0.3], dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bool))
    assert rewards.dtype == torch.float32
