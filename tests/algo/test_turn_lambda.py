"""λ between turns: one step of credit from turn to turn, none lost within a turn."""

from __future__ import annotations

import pytest
import torch

from vapo.algo import gae, held_values, turn_lambda, turn_start_mask

MASK = torch.tensor([[True, True, False, True, True]])
LAM = torch.tensor([0.5])


def test_lambda_is_one_within_a_turn_and_applies_at_its_last_token():
    assert turn_lambda(MASK, LAM).tolist() == [[1.0, 0.5, 1.0, 1.0, 0.5]]


def test_turns_without_a_token_between_them_are_told_apart_by_their_starts():
    mask = torch.tensor([[True, True, True, False]])
    starts = torch.tensor([[True, False, True, False]])
    assert turn_lambda(mask, LAM, starts).tolist() == [[1.0, 0.5, 0.5, 1.0]]
    assert turn_start_mask(mask, starts).tolist() == [[True, False, True, False]]
    # a start outside the mask is no turn, as in a response that teaches nothing
    assert turn_lambda(torch.zeros_like(mask), LAM, starts).tolist() == [[1.0] * 4]
    with pytest.raises(ValueError, match="starts"):
        turn_lambda(mask, LAM, starts[:, 1:])


def test_the_value_of_a_turns_first_token_holds_for_the_turn():
    values = torch.tensor([[0.2, 0.4, 9.0, 0.6, 0.8]])
    assert held_values(values, MASK).tolist() == [[*values[0, [0, 0]].tolist(), 0.0, *values[0, [3, 3]].tolist()]]
    starts = torch.tensor([[True, True, False, False, True]])  # of turns without a token between them, too
    assert torch.equal(held_values(values, MASK, starts), values.masked_fill(~MASK, 0.0))
    with pytest.raises(ValueError, match="held_values"):
        held_values(values[:, 1:], MASK)


def test_advantages_of_two_turns_worked_by_hand():
    # V = (.2, .4, -, .6, .8), r = (0, 0, -, 0, 1), γ = 1: δ = (.2, .2, -, .2, .2); the third is the environment's.
    # λ = .5 between the turns: A = (.2 + .4, .2 + .5·.4, 0, .2 + .2, .2) = (.6, .4, 0, .4, .2)
    values = torch.tensor([[0.2, 0.4, 9.0, 0.6, 0.8]])
    rewards = torch.tensor([[0.0, 0.0, 9.0, 0.0, 1.0]])
    advantages = gae(rewards, values, MASK, lam=turn_lambda(MASK, LAM))
    torch.testing.assert_close(advantages, torch.tensor([[0.6, 0.4, 0.0, 0.4, 0.2]]))


@pytest.mark.parametrize("width", [37, 200])
@pytest.mark.parametrize("kept", [0.7, 1.0])
def test_one_lambda_per_token_is_one_per_response_where_all_are_equal(width: int, kept: float):
    generator = torch.Generator().manual_seed(0)
    values, rewards = (torch.randn(4, width, generator=generator) for _ in range(2))
    mask = torch.rand(4, width, generator=generator) < kept
    lam = torch.tensor([0.0, 0.5, 0.9, 1.0])
    per_token = gae(rewards, values, mask, lam=lam[:, None].expand(4, width))
    torch.testing.assert_close(per_token, gae(rewards, values, mask, lam=lam), atol=1e-5, rtol=1e-5)


def test_a_lambda_per_token_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="gae"):
        gae(torch.zeros(1, 5), torch.zeros(1, 5), MASK, lam=torch.ones(1, 4))
