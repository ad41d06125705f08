"""Intervals over runs and prompts, compared with values computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vapo.evals.statistics import bootstrap_interval
from vapo.study.comparison.bootstrap import (
    band,
    degrees_of_freedom,
    draws,
    estimate,
    paired_estimate,
    run_means,
    t_over_normal,
)


def width(found):
    return found.high - found.low


def test_run_means_skip_prompts_without_a_verdict():
    # run 0: (1 + 0.5) / 2; run 1: 0.25 alone; run 2 was judged on nothing
    scores = np.array([[1.0, 0.5, np.nan], [np.nan, 0.25, np.nan], [np.nan] * 3])
    np.testing.assert_allclose(run_means(scores), [0.75, 0.25, np.nan])


def test_the_interval_of_runs_with_scores_0_and_1_is_that_of_one_degree_of_freedom():
    # one of two runs is drawn: the mean is 0 or 1, each in half of the resamples
    found = estimate(np.array([[0.0, 0.0], [1.0, 1.0]]), ["a", "a"])
    reach = 0.5 * 12.706 / 1.96  # the resamples reach 0.5 to both sides; Student's t at one degree of freedom widens it
    assert found == pytest.approx((0.5, 0.5 - reach, 0.5 + reach, 2))


def test_the_interval_of_two_equal_runs_has_the_degrees_of_freedom_of_the_prompts():
    # one prompt in 4 is solved: P(X >= 3) = 13/256 = .051 and P(X = 4) = 1/256, so the 97.5 % end is 3/4
    # the runs do not vary; the four prompts have three degrees of freedom
    scores = np.array([[0.0, 0.0, 0.0, 1.0]] * 2)
    wider = 3.182 / 1.96
    expected = (0.25, 0.25 - 0.25 * wider, 0.25 + 0.5 * wider, 2)
    assert estimate(scores, ["a", "a"]) == pytest.approx(expected)


def test_equal_runs_have_the_interval_over_prompts_only():
    prompts = np.random.default_rng(0).random(300)
    found = estimate(np.array([prompts] * 3), ["a"] * 3)
    alone = bootstrap_interval(prompts)
    np.testing.assert_allclose([found.low, found.high], alone, atol=0.002)


def test_the_variance_between_runs_is_not_underestimated():
    # three runs 0, 0.5, 1: s² / n = 0.25 / 3; n draws would give (0.5 / 3) / 3
    runs = np.array([0.0, 0.5, 1.0])
    means = np.concatenate([draw.runs @ runs / 3 for draw in draws(["a"] * 3, 2)])
    assert means.var() == pytest.approx(0.25 / 3, rel=0.05)


def test_degrees_of_freedom_are_those_of_the_varying_parts():
    runs_only = np.array([[0.0] * 50, [0.5] * 50, [1.0] * 50])
    assert degrees_of_freedom(runs_only, ["a"] * 3) == pytest.approx(2.0)
    prompts_only = np.array([np.arange(50) / 50] * 3)
    assert degrees_of_freedom(prompts_only, ["a"] * 3) == pytest.approx(49.0)
    assert degrees_of_freedom(np.full((3, 50), 0.5), ["a"] * 3) == float("inf")
    # only the three runs of base a vary, with two degrees of freedom
    one_base = np.array([[0.0], [0.5], [1.0], [0.5], [0.5], [0.5]]).repeat(9, axis=1)
    assert degrees_of_freedom(one_base, ["a"] * 3 + ["b"] * 3) == pytest.approx(2.0)
    # run effects 0 and 1, prompt effects 0 and 1: v_R = .5 / 2, v_P = .5 / 2, so (½)² / ((¼)² / 1 + (¼)² / 1) = 2
    assert degrees_of_freedom(np.array([[0.0, 1.0], [1.0, 2.0]]), ["a", "a"]) == pytest.approx(2.0)


def test_the_widening_factor_is_the_ratio_of_student_and_normal_quantiles():
    assert t_over_normal(float("inf")) == 1.0
    assert t_over_normal(2) * 1.96 == pytest.approx(4.303)
    assert t_over_normal(7) * 1.96 == pytest.approx(2.365, abs=0.02)  # between two places of the table
    assert t_over_normal(0.5) == t_over_normal(1)


def test_intervals_of_three_pairs_cover_the_true_difference_in_at_least_90_percent_of_trials():
    rng, held = np.random.default_rng(0), 0
    for trial in range(120):
        sides = rng.random(60) + rng.normal(0, 0.05, (2, 3, 1)) + rng.normal(0, 0.1, (2, 3, 60))
        found = paired_estimate(sides[0], sides[1], ["a"] * 3, resamples=400, seed=trial)
        held += found.low <= 0.0 <= found.high
    assert held >= 0.9 * 120  # plain percentiles: about 0.8


def test_runs_that_differ_widen_the_interval():
    prompts = np.random.default_rng(0).random(200)
    equal = estimate(np.array([prompts] * 4), ["a"] * 4)
    differing = estimate(np.array([prompts + d for d in (-0.1, -0.03, 0.03, 0.1)]), ["a"] * 4)
    assert differing.mean == pytest.approx(equal.mean)
    assert width(differing) > 1.5 * width(equal)


def test_more_prompts_narrow_the_interval():
    rng = np.random.default_rng(0)
    few, many = (estimate(np.array([rng.random(n)] * 2), ["a", "a"]) for n in (50, 800))
    assert width(many) < 0.5 * width(few)


def test_runs_are_resampled_within_their_base():
    # base a scores .2 and base b .8 for every seed, so resampling within bases has no variance
    scores = np.array([[0.2] * 3, [0.2] * 3, [0.8] * 3, [0.8] * 3])
    apart, together = estimate(scores, ["a", "a", "b", "b"]), estimate(scores, ["a"] * 4)
    assert width(apart) == pytest.approx(0.0)
    assert width(together) > 0.3


def test_all_runs_form_one_stratum_if_a_base_has_a_single_run():
    scores = np.array([[0.2] * 3, [0.2] * 3, [0.8] * 3])
    assert estimate(scores, ["a", "a", "b"]) == estimate(scores, ["a"] * 3)


def test_one_run_has_no_interval():
    found = estimate(np.array([[0.0, 1.0]]), ["a"])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()


def test_the_paired_difference_of_equal_scores_is_exactly_zero():
    scores = np.random.default_rng(0).random((5, 40))
    assert paired_estimate(scores, scores, ["a"] * 5) == (0.0, 0.0, 0.0, 5)


def test_pairing_removes_seed_effects_that_both_sides_share():
    rng = np.random.default_rng(0)
    prompts, luck = rng.random(100), rng.normal(0, 0.3, (5, 1))
    left = prompts + luck + 0.05 + rng.normal(0, 0.01, (5, 100))
    right = prompts + luck
    paired = paired_estimate(left, right, ["a"] * 5)
    assert 0.04 < paired.low < paired.high < 0.06
    assert width(estimate(left, ["a"] * 5)) > 20 * width(paired)


def test_a_pair_leaves_out_prompts_without_a_verdict_on_either_side():
    left = np.array([[1.0, np.nan], [1.0, 1.0]])
    right = np.array([[0.5, 0.0], [0.5, np.nan]])
    assert paired_estimate(left, right, ["a", "a"]).mean == 0.5


def test_a_band_is_the_interval_over_runs_at_each_point():
    low, high = band(np.array([[0.0, 0.3], [1.0, 0.3]]), ["a", "a"])
    reach = 0.5 * 12.706 / 1.96
    np.testing.assert_allclose([low, high], [[0.5 - reach, 0.3], [0.5 + reach, 0.3]])
    assert np.isnan(band(np.array([[0.0, 0.3]]), ["a"])).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 12), st.integers(0, 99))
def test_the_interval_contains_the_mean_and_shifts_with_the_scores(num_runs, num_prompts, seed):
    scores = np.random.default_rng(seed).random((num_runs, num_prompts))
    found = estimate(scores, [0] * num_runs, resamples=500)
    assert found.low <= found.mean <= found.high
    moved = estimate(scores + 2.0, [0] * num_runs, resamples=500)
    np.testing.assert_allclose(np.array(moved[:3]) - 2.0, found[:3], atol=1e-9)


def test_a_missing_stratum_raises():
    with pytest.raises(ValueError, match="one stratum per run"):
        estimate(np.zeros((2, 3)), ["a"])
