"""What λ is at each length, and how much of the outcome it leaves for the first token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo.algo import lambdas, length_adaptive_lambda, relative_lambda
from vapo.algo.method import Fixed, LengthAdaptive, Relative

ALPHAS = (0.05, 0.4, 1.5)
# length: for each alpha, λ (negative ones clamped to 0) and λ^(l-1), the last TD error's weight on token one
TABLE = {
    1: ((0, 1), (0, 1), (0.333333, 1)),  # raw: -19, -1.5
    10: ((0, 0), (0.75, 0.0750847), (0.933333, 0.537441)),  # raw: -1
    20: ((0, 0), (0.875, 0.0790957), (0.966667, 0.525119)),
    21: ((0.0476190, 3.594e-27), (0.880952, 0.0792590), (0.968254, 0.524549)),
    25: ((0.2, 1.678e-17), (0.9, 0.0797664), (0.973333, 0.522731)),
    40: ((0.5, 1.819e-12), (0.9375, 0.0807012), (0.983333, 0.519194)),
    100: ((0.8, 2.546e-10), (0.975, 0.0815562), (0.993333, 0.515710)),
    400: ((0.95, 1.293e-09), (0.99375, 0.0819558), (0.998333, 0.513988)),
    1000: ((0.98, 1.717e-09), (0.9975, 0.0820335), (0.999333, 0.513645)),
    4000: ((0.995, 1.970e-09), (0.999375, 0.0820722), (0.999833, 0.513474)),
    16384: ((0.998779297, 2.039e-09), (0.999847412, 0.0820819), (0.999959310, 0.513431)),
    20480: ((0.9990234375, 2.043e-09), (0.999877930, 0.0820825), (0.999967448, 0.513428)),
}


@pytest.mark.parametrize(("column", "alpha"), list(enumerate(ALPHAS)))
def test_length_adaptive_lambda_matches_the_table(column, alpha):
    expected = [row[column][0] for row in TABLE.values()]
    for lengths in (torch.tensor(list(TABLE)), torch.tensor(list(TABLE), dtype=torch.float64)):
        actual = length_adaptive_lambda(lengths, alpha)
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=6e-7, rtol=0)


@pytest.mark.parametrize(("column", "alpha"), list(enumerate(ALPHAS)))
def test_the_weight_of_the_outcome_on_the_first_token_matches_the_table(column, alpha):
    lengths = torch.tensor(list(TABLE), dtype=torch.float64)
    weights = torch.tensor([row[column][1] for row in TABLE.values()], dtype=torch.float64)
    actual = length_adaptive_lambda(lengths, alpha) ** (lengths - 1)
    torch.testing.assert_close(actual, weights, atol=0, rtol=5e-4)


@pytest.mark.parametrize(
    ("alpha", "limit"),
    [
        (0.05, 2.0612e-09),
        (0.1, 4.540e-05),
        (0.2, 0.0067379),
        (0.4, 0.0820850),
        (1.0, 0.3678794),
        (1.5, 0.5134171),
    ],
)
def test_in_long_responses_the_weight_of_the_outcome_is_exp_of_minus_one_over_alpha(alpha, limit):
    length = torch.tensor([1e8], dtype=torch.float64)
    weight = (length_adaptive_lambda(length, alpha) ** (length - 1)).item()
    assert weight == pytest.approx(limit, rel=1e-4)
    assert weight == pytest.approx(math.exp(-1 / alpha), rel=1e-4)


def test_lambda_with_alpha_005_is_zero_for_20_tokens_and_positive_for_21():
    lam = length_adaptive_lambda(torch.tensor([0, 1, 19, 20, 21]))
    assert lam[:4].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert lam[4].item() == pytest.approx(1 - 1 / 1.05, abs=1e-6)


def test_the_td_weights_of_a_long_response_sum_to_alpha_times_its_length():
    # eq. 4: l = 1000, α = .05: Σ_{t<1000} .98^t = 49.9999999, for 50
    lam = length_adaptive_lambda(torch.tensor([1000.0], dtype=torch.float64)).item()
    assert sum(lam**t for t in range(1000)) == pytest.approx(50, abs=1e-6)


@given(st.lists(st.integers(0, 30000), min_size=2, max_size=20), st.floats(0.01, 5.0))
def test_length_adaptive_lambda_does_not_decrease_with_length_and_is_below_one(lengths, alpha):
    lam = length_adaptive_lambda(torch.tensor(sorted(lengths)), alpha)
    assert ((lam >= 0) & (lam < 1)).all()
    assert (lam.diff() >= 0).all()


def test_relative_lambda_gives_the_first_token_weight_q_at_every_length():
    lengths = torch.tensor([2, 4, 100, 1000])
    lam = relative_lambda(lengths, q=0.1)
    torch.testing.assert_close(lam, torch.tensor([0.1, 0.4641589, 0.9770100, 0.9976978]))
    torch.testing.assert_close(lam ** (lengths - 1), torch.full((4,), 0.1), rtol=1e-4, atol=0)


def test_relative_lambda_of_a_single_token_is_one():
    assert relative_lambda(torch.tensor([0, 1]), q=0.1).tolist() == [1.0, 1.0]


def test_lambdas_dispatches_on_the_rule_of_the_preset():
    lengths = torch.tensor([4, 40])
    torch.testing.assert_close(lambdas(Fixed(0.95), lengths), torch.tensor([0.95, 0.95]))
    torch.testing.assert_close(lambdas(LengthAdaptive(0.05), lengths), torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(lambdas(Relative(0.1), lengths), relative_lambda(lengths, 0.1))
