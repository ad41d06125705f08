"""Monte-Carlo values: golden numbers, and a process whose true values and ceiling are known."""

from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest

from vapo.evals import critic_statistics as statistics
from vapo.evals.critic_statistics import Bin

PROMPT_CHANCES = np.array([0.2, 0.6])
"""A prompt is hard or easy, each half of the time. Halfway through, its chance has risen or fallen by STEP."""
STEP = 0.2
VAR_R = 0.4 * 0.6
CEILINGS = (0.2**2 / VAR_R, (0.2**2 + STEP**2) / VAR_R)
"""At position 0 Var(V) = Var(.2, .6) = .2²; halfway the chances are 0, .4, .4, .8, with variance .2² + STEP²."""


def simulated(rng: np.random.Generator, prompts: int, responses: int, k: int) -> tuple[np.ndarray, ...]:
    """True values, counts of right continuations (M, G, 2) and outcomes (M, G) of the process."""
    start = rng.choice(PROMPT_CHANCES, size=(prompts, 1))
    half = start + rng.choice([-STEP, STEP], size=(prompts, responses))
    outcomes = (rng.random((prompts, responses)) < half).astype(float)
    at_prompt = np.repeat(rng.binomial(k, start), responses, axis=1)  # one prefix, one p̂ for all responses
    right = np.stack([at_prompt, rng.binomial(k, np.clip(half, 0, 1))], axis=-1)
    return np.stack([np.broadcast_to(start, half.shape), half], axis=-1), right, outcomes


def test_monte_carlo_values_and_their_noise_worked_by_hand():
    # 3 of 4 right: p̂ = .75, noise .75·.25/3 = .0625; rewards -1 and 1: value .5, noise 4 times as large
    value, noise = statistics.monte_carlo_values([3, 4, 1], [4, 4, 1])
    np.testing.assert_allclose(value, [0.75, 1.0, nan])
    np.testing.assert_allclose(noise, [0.0625, 0.0, nan])
    value, noise = statistics.monte_carlo_values(3, 4, reward_right=1, reward_wrong=-1)
    assert (float(value), float(noise)) == (0.5, 0.25)
    with pytest.raises(ValueError, match="0 <= right <= valid"):
        statistics.monte_carlo_values(3, 2)


def test_variance_of_clustered_numbers_worked_by_hand():
    # rows (0, 1) and (1, 1): mean .75, plain variance .1875; deviations sum to -.5 and .5 in the rows, so the variance
    # of the mean is 2/(2 - 1) · (.25 + .25)/4²
    assert statistics.clustered_variance([[0, 1], [1, 1]]) == pytest.approx(0.1875 + 2 * 0.5 / 16)
    # one number per prompt: the usual unbiased variance
    assert statistics.clustered_variance([[0.0], [1.0], [2.0]]) == pytest.approx(1.0)
    assert statistics.clustered_variance([[0.0] * 3, [1.0] * 3, [2.0] * 3]) == pytest.approx(1.0)
    assert statistics.clustered_variance([[0, nan], [2, nan]]) == pytest.approx(2.0)
    assert isnan(statistics.clustered_variance([[0, 1]]))


def test_corrected_numbers_are_unbiased_over_many_draws_and_uncorrected_ones_are_not():
    rng, k = np.random.default_rng(1), 4
    found: dict[str, list[list[float]]] = {name: [] for name in ("ceiling", "plain", "ev", "mse", "plain mse", "bias")}
    for _ in range(3000):
        true, right, outcomes = simulated(rng, prompts=12, responses=3, k=k)
        p, noise = statistics.monte_carlo_values(right, np.full_like(right, k))
        critic = 0.1 + 0.5 * true  # wrong by an offset and by half of what there is to know
        columns = [(critic[..., f], p[..., f], noise[..., f]) for f in (0, 1)]
        # ratios are biased in small samples, so the parts are averaged
        found["ceiling"].append([statistics.true_variance(m, n) for _, m, n in columns])
        found["plain"].append([statistics.clustered_variance(m) for _, m, _ in columns])
        variance = statistics.clustered_variance(outcomes)
        found["ev"].append([statistics.critic_explained_variance(c, m, outcomes) * variance for c, m, _ in columns])
        found["mse"].append([statistics.corrected_mse(*column) for column in columns])
        found["plain mse"].append([float(np.square(c - m).mean()) for c, m, _ in columns])
        found["bias"].append([statistics.bias(c, m) for c, m, _ in columns])
    mean = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    error = {name: np.std(rows, axis=0) / np.sqrt(len(rows)) for name, rows in found.items()}
    var_v = np.array(CEILINGS) * VAR_R

    def off(name: str, truth: np.ndarray) -> np.ndarray:
        """Distance from the truth in standard errors."""
        return np.abs(mean[name] - truth) / error[name]

    assert (off("ceiling", var_v) < 4).all()
    assert (off("plain", var_v) > 20).all()
    # Var(V) - Var(V - C) with C = .1 + .5·V: 3/4 of Var(V)
    assert (off("ev", 0.75 * var_v) < 4).all()
    truth = np.array([np.mean((0.1 - 0.5 * np.array(v)) ** 2) for v in ([0.2, 0.6], [0.0, 0.4, 0.4, 0.8])])
    assert (off("mse", truth) < 4).all()
    assert (off("plain mse", truth) > 20).all()
    assert (off("bias", np.full(2, 0.1 - 0.5 * 0.4)) < 4).all()


def test_the_ceiling_of_a_large_sample_is_the_processes_own_and_a_perfect_critic_reaches_it():
    true, right, outcomes = simulated(np.random.default_rng(2), prompts=20_000, responses=4, k=3)
    p, noise = statistics.monte_carlo_values(right, np.full_like(right, 3))
    for f in (0, 1):
        top = statistics.ceiling(p[..., f], noise[..., f], outcomes)
        assert top == pytest.approx(CEILINGS[f], abs=0.01)
        assert statistics.critic_explained_variance(true[..., f], p[..., f], outcomes) == pytest.approx(top, abs=0.01)
        assert abs(statistics.corrected_mse(true[..., f], p[..., f], noise[..., f])) < 1e-3


def test_explained_variance_from_monte_carlo_values_is_that_of_the_outcomes():
    true, right, outcomes = simulated(np.random.default_rng(3), prompts=20_000, responses=4, k=3)
    p, _ = statistics.monte_carlo_values(right, np.full_like(right, 3))
    critic = 1.5 * true[..., 1] - 0.3
    plain = 1 - np.var(outcomes - critic) / np.var(outcomes)
    assert statistics.critic_explained_variance(critic, p[..., 1], outcomes) == pytest.approx(plain, abs=0.01)


def test_the_variance_with_a_groups_mean_is_that_of_the_groups_of_training():
    # chances .2 or .6: within-variance (.16 + .24)/2 = .2; n = 16: .2·16/15, whatever G is here
    rng = np.random.default_rng(4)
    for responses in (2, 5):
        chance = rng.choice(PROMPT_CHANCES, size=(40_000, 1))
        right = (rng.random((40_000, responses)) < chance).astype(float)
        others = (right.sum(1, keepdims=True) - right) / (responses - 1)
        found = statistics.group_advantage_variance(right, others, 16)
        assert found == pytest.approx(0.2 * 16 / 15, abs=0.004)
        own = statistics.group_advantage_variance(right, others, responses)
        assert own == pytest.approx(np.var(right - others), rel=1e-3)


def test_equal_outcomes_have_no_ceiling():
    assert isnan(statistics.ceiling(np.ones((3, 2)), np.zeros((3, 2)), np.ones((3, 2))))


def test_rank_correlation_shares_ranks_of_equal_numbers():
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: deviations (-1.5, 0, 0, 1.5), (-1.5, -.5, .5, 1.5); 4.5/sqrt(4.5·5)
    assert statistics.spearman([1, 2, 2, 9], [0, 1, 2, 3]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert statistics.spearman([3, 2, 1], [0.1, 0.2, 0.9]) == pytest.approx(-1)
    assert statistics.spearman([1, nan, 2], [1, 5, 2]) == pytest.approx(1)
    assert isnan(statistics.spearman([1, 1], [0, 1]))


def test_reliability_bins_hold_neighbouring_values_and_count_a_shared_prefix_once():
    # values .1 (two responses with one prefix) and .9: two bins. Noise of the first is its prefix's, not half of it.
    bins = statistics.reliability([0.1, 0.1, 0.9], [0.3, 0.3, 0.8], [0.04, 0.04, 0.02], [0, 0, 1], bins=2)
    assert bins == [Bin(2, 0.1, 0.3, 0.04), Bin(1, 0.9, 0.8, 0.02)]
    # gaps .2 and .1: (2·(.04 - .04) + (.01 - .02))/3 < 0, so luck explains all; without noise (2·.04 + .01)/3
    assert statistics.calibration_error(bins) == 0
    exact = [b._replace(noise=0.0) for b in bins]
    assert statistics.calibration_error(exact) == pytest.approx(np.sqrt(0.09 / 3))


def test_two_prefixes_of_one_bin_have_half_the_noise():
    (found,) = statistics.reliability([0.5, 0.5], [0.4, 0.6], [0.04, 0.04], [0, 1])
    assert found.noise == pytest.approx(0.02)
    assert isnan(statistics.calibration_error([]))
