"""Trust regions around the sampler and weights that correct for it, against numbers worked by hand."""

import math

import pytest
import torch

from vapo.algo import probability_bounded_surrogate, ratio_masked_surrogate, sampler_weights
from vapo.algo.method import Band, NoCorrection, SequenceMask, TruncatedWeight


def log(values):
    return torch.tensor(values).log()


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_ratio_mask_keeps_tokens_inside_the_band_with_their_gradient():
    ratio = torch.tensor([0.5, 0.7, 1.0, 6.0, 7.0])
    logp = ratio.log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 2.0, 1.0, -1.0])
    loss = ratio_masked_surrogate(logp, torch.zeros(5), advantages, low=0.69, high=6.01)
    close(loss.detach(), [0.0, 0.7, -2.0, -6.0, 0.0])
    loss.sum().backward()
    close(logp.grad, [0.0, 0.7, -2.0, -6.0, 0.0])  # -ρ·A


@pytest.mark.parametrize(
    ("mu", "low", "high"), [(0.01, -19.0, 21.0), (0.1, -1.0, 3.0), (0.5, 0.6, 1.4), (0.9, 0.7777778, 1.2222222)]
)
def test_the_probability_bound_moves_the_ratio_by_eps_over_mu(mu, low, high):
    # the ratio is bounded by 1/μ, so that of a rare token never reaches its bound
    for ratio, moves in [(high - 0.01, True), (high + 0.01, False)]:
        logp = torch.tensor([math.log(ratio * mu)], requires_grad=True)
        probability_bounded_surrogate(logp, log([mu]), torch.ones(1), eps=0.2).sum().backward()
        assert bool(logp.grad.abs().sum() > 0) is moves
    for ratio, moves in [(max(low, 0) + 0.01, True), (low - 0.01, low < 0)]:
        logp = torch.tensor([math.log(max(ratio, 1e-6) * mu)], requires_grad=True)
        probability_bounded_surrogate(logp, log([mu]), -torch.ones(1), eps=0.2).sum().backward()
        assert bool(logp.grad.abs().sum() > 0) is moves


def test_inside_the_bound_the_surrogate_is_minus_ratio_times_advantage():
    close(probability_bounded_surrogate(log([0.55]), log([0.5]), torch.tensor([2.0]), eps=0.2), [-2.2])
    close(probability_bounded_surrogate(log([0.9]), log([0.5]), torch.tensor([2.0]), eps=0.2), [-2.8])


RATIOS = [0.25, 0.5, 1.0, 1.5, 3.0, 6.0]
ROW = torch.tensor([RATIOS])
ALL = torch.ones(1, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("correction", "weights", "removed"),
    [
        (NoCorrection(), [1.0] * 6, []),
        (TruncatedWeight(cap=2.0), [0.25, 0.5, 1.0, 1.5, 2.0, 2.0], [4, 5]),
        (Band(low=0.49, high=5.0), [0.0, 0.5, 1.0, 1.5, 3.0, 0.0], [0, 5]),
        (SequenceMask(cap=3.0), [0.0] * 6, [0, 1, 2, 3, 4, 5]),  # the product is 3.375
        (SequenceMask(cap=4.0), [3.375] * 6, []),
    ],
)
def test_sampler_weights(correction, weights, removed):
    found, cut = sampler_weights(correction, ROW.log(), torch.zeros(1, 6), ALL)
    close(found, [weights])
    assert cut.nonzero()[:, 1].tolist() == removed


def test_equal_policies_weigh_1_under_every_correction():
    logp = torch.full((2, 3), -1.5)
    for correction in (NoCorrection(), TruncatedWeight(), Band(), SequenceMask()):
        found, cut = sampler_weights(correction, logp, logp, torch.ones(2, 3, dtype=torch.bool))
        assert torch.equal(found, torch.ones(2, 3))
        assert not cut.any()


def test_tokens_outside_the_mask_do_not_count():
    mask = torch.tensor([[True, False, True]])
    old = torch.tensor([[0.5, 1e30, 2.0]]).log()
    for correction in (TruncatedWeight(), Band(low=0.4), SequenceMask()):
        found, cut = sampler_weights(correction, old, torch.zeros(1, 3), mask)
        assert float(found[0, 1]) == 1
        assert not bool(cut[0, 1])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_gives_no_gradient_that_is_not_a_number(garbage):
    logp = torch.tensor([0.0, garbage], requires_grad=True)
    masked = ratio_masked_surrogate(logp, torch.zeros(2), torch.ones(2), low=0.7, high=6.0)
    bounded = probability_bounded_surrogate(logp, torch.zeros(2), torch.ones(2), eps=0.2)
    (masked[0] + bounded[0]).backward()
    assert bool(logp.grad.isfinite().all())
