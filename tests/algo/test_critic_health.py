"""Explained variance and whitening against numbers worked by hand: statistics over a mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo.algo import explained_variance, gae, terminal_rewards, whiten

NAN = float("nan")
RETURNS = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # Var = .25
FOUR = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # y - V = (.2, .4, -.3, -.1): mean .05, mean square .075, Var .0725; 1 - .0725/.25 = .71
        ([0.8, 0.6, 0.3, 0.1], 0.71),
        ([0.5, 0.5, 0.5, 0.5], 0.0),
        ([0.1, 0.3, 0.6, 0.8], -1.29),
        ([0.9, 0.9, 0.1, 0.1], 0.96),
        ([1.9, 1.9, 1.1, 1.1], 0.96),  # an offset of 1 is invisible
        ([1.0, 1.0, 0.0, 0.0], 1.0),
    ],
)
def test_explained_variance_matches_hand_computed_values(values, expected):
    assert explained_variance(torch.tensor([values]), RETURNS, FOUR).item() == pytest.approx(expected, abs=1e-6)


def test_explained_variance_ignores_tokens_outside_the_mask():
    values = torch.tensor([[0.8, NAN, 0.6, 0.3, 0.1, 1e9]])
    returns = torch.tensor([[1.0, 5.0, 1.0, 0.0, 0.0, NAN]])
    mask = torch.tensor([[True, False, True, True, True, False]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.71, abs=1e-6)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1.0])
def test_explained_variance_of_equal_returns_is_nan(reward):
    assert explained_variance(torch.rand(1, 4), torch.full((1, 4), reward), FOUR).isnan()


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_explained_variance_without_tokens_is_nan(shape):
    nothing = torch.zeros(shape)
    assert explained_variance(nothing, nothing, nothing.bool()).isnan()


@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("width", [40, 2000])
def test_explained_variance_of_returns_that_differ_by_rounding_is_nan(reward, width):
    # y = A + V is R up to rounding; taken at its word, that would be an EV of minus billions
    values = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).sigmoid()
    mask = torch.ones(8, width, dtype=torch.bool)
    returns = gae(terminal_rewards(torch.full((8,), reward), mask), values, mask, lam=1.0) + values
    assert explained_variance(values, returns, mask).isnan()


def test_a_critic_that_exploded_explains_less_than_nothing():
    values = 1e6 * torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 40, dtype=torch.bool)
    outcomes = torch.tensor([0.0, 1.0] * 4)[:, None].expand(8, 40)
    assert explained_variance(values, outcomes, mask, exact=True) < -1e11
    assert explained_variance(values, torch.full((8, 40), 0.1), mask, exact=True).isnan()


def test_explained_variance_is_finite_with_one_right_answer_in_a_thousand():
    values = torch.rand(1000, 20, generator=torch.Generator().manual_seed(0)) * 0.01
    mask, outcomes = torch.ones(1000, 20, dtype=torch.bool), torch.zeros(1000)
    outcomes[7] = 1.0
    returns = gae(terminal_rewards(outcomes, mask), values, mask, lam=1.0) + values
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.0, abs=0.05)


def test_explained_variance_is_finite_for_small_differences_between_returns():
    # y = 1 ± .00005, V = y + .5: all of it foreseen
    returns = torch.tensor([[1.0001, 1.0001, 1.0, 1.0]])
    assert explained_variance(returns + 0.5, returns, FOUR).item() == pytest.approx(1.0, abs=1e-4)


def test_explained_variance_with_a_nan_inside_the_mask_is_nan():
    assert explained_variance(torch.tensor([[0.8, NAN, 0.3, 0.1]]), RETURNS, FOUR).isnan()


# --------------------------------------------------------------------------- whitening


def test_whitening_uses_mean_and_population_variance_over_the_mask():
    # mean .425, Var .021875. Bug 6: with the two pads in the mean it would be .2833333.
    expected = [0.507092, -0.169031, 1.183216, -1.521277]
    mask = torch.tensor([[True, True, True, True, False, False]])
    for pad in (0.0, 7.0, NAN, float("inf")):
        whitened = whiten(torch.tensor([[0.5, 0.4, 0.6, 0.2, pad, pad]]), mask)
        torch.testing.assert_close(whitened, torch.tensor([[*expected, 0.0, 0.0]]), atol=1e-5, rtol=0)


def test_whitening_normalises_over_all_rows():
    mask = torch.tensor([[True, True], [True, True]])
    whitened = whiten(torch.tensor([[0.5, 0.4], [0.6, 0.2]]), mask)
    expected = torch.tensor([[0.507092, -0.169031], [1.183216, -1.521277]])
    torch.testing.assert_close(whitened, expected, atol=1e-5, rtol=0)


@given(st.floats(-100, 100, width=32), st.integers(1, 30))
def test_equal_advantages_whiten_to_exactly_zero(advantage, count):
    whitened = whiten(torch.full((1, count), advantage), torch.ones(1, count, dtype=torch.bool))
    assert whitened.eq(0).all()


def test_whitening_an_empty_mask_gives_zeros():
    assert whiten(torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)).eq(0).all()
    assert whiten(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_low_precision_inputs_are_computed_in_float32(dtype):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.ones(64, 64, dtype=torch.bool)
    assert torch.equal(whiten(x, mask), whiten(x.float(), mask))
    ev = explained_variance(x, x, mask)
    assert ev.dtype == torch.float32
    assert math.isclose(ev.item(), 1.0)
