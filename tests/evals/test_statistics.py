"""Scores compared with hand-computed values, their properties, and the coverage of bootstrap intervals."""

from itertools import pairwise
from math import comb, isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo.evals.statistics import (
    avg_at_k,
    bootstrap_interval,
    counts,
    maj_at_k,
    paired_bootstrap_difference,
    pass_at_k,
    unanimous_interval,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 0.5),  # of C(4,2) = 6 pairs, C(3,2) = 3 miss the right one: 1 - 3/6
        (4, 2, 2, 5 / 6),  # one pair of six holds no right one
        (5, 3, 3, 1.0),  # only 2 wrong ones: three samples always hold a right one
        (10, 3, 5, 11 / 12),  # C(7,5)/C(10,5) = 21/252 = 1/12
        (8, 0, 8, 0.0),
        (8, 1, 8, 1.0),
    ],
)
def test_pass_at_k_matches_hand_computed_values(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_has_one_entry_per_problem_and_is_nan_with_fewer_than_k_samples():
    np.testing.assert_allclose(pass_at_k([4, 4, 1], [1, 2, 1], 2), [0.5, 5 / 6, nan])


def test_pass_at_k_is_exact_where_binomials_overflow_floats():
    # 1 - C(4090,1000)/C(4096,1000): both binomials exceed 1e308; Python's integers give the exact value
    exact = 1 - comb(4090, 1000) / comb(4096, 1000)
    assert float(pass_at_k(4096, 6, 1000)) == pytest.approx(exact, rel=1e-12)


@given(n=st.integers(1, 40), data=st.data())
def test_pass_at_k_equals_the_binomial_formula_and_increases_from_the_mean(n, data):
    c = data.draw(st.integers(0, n))
    scores = [float(pass_at_k(n, c, k)) for k in range(1, n + 1)]
    assert scores == pytest.approx([1 - comb(n - c, k) / comb(n, k) for k in range(1, n + 1)], abs=1e-12)
    assert scores[0] == pytest.approx(c / n)
    assert all(a <= b + 1e-12 for a, b in pairwise(scores))
    assert scores[-1] == pytest.approx(float(c > 0))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_raises_for_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(n, c, k)


def test_pass_at_k_is_unbiased_under_subsampling():
    # the share of random 3-subsets of the 8 samples with a right one converges to pass@3
    rng = np.random.default_rng(0)
    right = np.array([1, 1, 0, 0, 0, 0, 0, 0])
    hits = np.mean([right[rng.permutation(8)[:3]].any() for _ in range(4000)])
    assert hits == pytest.approx(float(pass_at_k(8, 2, 3)), abs=0.03)


def test_invalid_samples_are_neither_right_nor_wrong():
    # Problem 0: 1 of 3 valid. Problem 1: all 4 valid, 2 right. Problem 2: nothing valid.
    correct = [[1, 0, nan, 0], [1, 1, 0, 0], [nan] * 4]
    np.testing.assert_allclose(avg_at_k(correct), [1 / 3, 1 / 2, nan])
    n, c = counts(correct)
    np.testing.assert_array_equal(n, [3, 4, 0])
    np.testing.assert_array_equal(c, [1, 2, 0])
    # pass@2: n=3, c=1: 1 - C(2,2)/C(3,2) = 2/3; n=4, c=2: 5/6.
    np.testing.assert_allclose(pass_at_k(n, c, 2), [2 / 3, 5 / 6, nan])


def test_avg_is_pass_at_1():
    correct = np.random.default_rng(3).integers(0, 2, size=(20, 8)).astype(float)
    correct[correct.shape[0] // 2, 3] = nan
    np.testing.assert_allclose(avg_at_k(correct), pass_at_k(*counts(correct), 1))


@pytest.mark.parametrize("bad", [[1, 0], [[0.5]], [[2]]])
def test_verdicts_must_be_a_matrix_of_zeros_and_ones(bad):
    with pytest.raises(ValueError, match="Verdicts"):
        avg_at_k(bad)


def test_majority_votes_match_hand_computed_values():
    answers = [
        ["7", "7", "3", "7"],  # 7 wins 3 to 1 and is right
        ["7", "3", "3", "7"],  # a tie, 7 right and 3 wrong: expected value 1/2
        ["1", "2", "3", "4"],  # four tied, one right: 1/4
        [None, None, None, "9"],  # one right answer wins over any number of Nones
        [None, None, None, None],  # no answer at all: 0
        ["5", "5", "6", "6"],  # one 5 is invalid, so 6 wins 2 to 1, and is wrong
        ["5", "5", "5", "5"],  # no valid sample
    ]
    correct = [
        [1, 1, 0, 1],
        [1, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [1, nan, 0, 0],
        [nan] * 4,
    ]
    np.testing.assert_allclose(maj_at_k(answers, correct), [1, 0.5, 0.25, 1, 0, 0, nan])


def test_majority_of_one_sample_is_that_sample():
    correct = np.array([[1.0], [0.0]])
    np.testing.assert_allclose(maj_at_k([["a"], ["b"]], correct), avg_at_k(correct))


def test_majority_raises_if_answers_and_verdicts_have_different_shapes():
    with pytest.raises(ValueError, match="maj@k"):
        maj_at_k([["a"]], [[1, 0]])


def test_the_bootstrap_interval_of_two_problems_matches_hand_computed_ends():
    # Scores 0 and 1: a resample's mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4. The outer 2.5 % are 0, 1;
    # at level 0.4 (quantiles 0.3 and 0.7) both ends are 1/2.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bootstrap_is_near_the_normal_interval_for_many_problems():
    # 400 problems, half of them solved: 0.5 ± 1.96 · sqrt(0.25/400) = 0.5 ± 0.049
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_bootstrap_depends_on_its_seed_and_is_nan_for_fewer_than_two_problems():
    scores = np.random.default_rng(0).random(30)
    assert bootstrap_interval(scores, seed=1) == bootstrap_interval(scores, seed=1)
    assert bootstrap_interval(scores, seed=1) != bootstrap_interval(scores, seed=2)
    assert bootstrap_interval([*scores, nan, nan]) == bootstrap_interval(scores)
    for too_few in ([], [0.3], [0.3, nan]):
        assert all(map(isnan, bootstrap_interval(too_few)))
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(scores, level=95)


def test_bootstrap_intervals_cover_the_true_mean_in_90_to_98_percent_of_trials():
    rng = np.random.default_rng(5)
    worlds = rng.binomial(8, rng.beta(2, 3, size=(300, 60))) / 8  # true mean 2/5
    inside = [low <= 0.4 <= high for low, high in (bootstrap_interval(w, resamples=400) for w in worlds)]
    assert 0.90 <= np.mean(inside) <= 0.98


def test_paired_difference_removes_the_problems_difficulty():
    rng = np.random.default_rng(0)
    difficulty = rng.random(50)
    b, a = difficulty, difficulty + 0.05 + 0.01 * rng.standard_normal(50)
    difference = paired_bootstrap_difference(a, b)
    assert difference.mean == pytest.approx(0.05, abs=0.01)
    assert 0.04 < difference.low < difference.mean < difference.high < 0.06
    low, high = bootstrap_interval(a)
    assert difference.high - difference.low < (high - low) / 10


def test_paired_difference_skips_problems_with_nan_on_one_side():
    # The pairs left are 1-0 and 1-1: the mean is 1/2.
    assert paired_bootstrap_difference([1, 1, nan, 0], [0, 1, 1, nan]).mean == 0.5
    assert all(map(isnan, paired_bootstrap_difference([nan], [1])))
    with pytest.raises(ValueError, match="equal problems"):
        paired_bootstrap_difference([1, 0], [1])


def test_equal_scores_have_the_clopper_pearson_interval():
    # 32 problems, none solved: the upper end p has (1 - p)^32 = .025; all solved: the mirror image
    assert bootstrap_interval([0.0] * 32) == pytest.approx((0.0, 1 - 0.025 ** (1 / 32)))
    assert bootstrap_interval([1.0] * 32) == pytest.approx((0.025 ** (1 / 32), 1.0))
    assert bootstrap_interval([0.0] * 32).high == pytest.approx(0.10888, abs=1e-5)


def test_the_interval_of_equal_differences_extends_to_both_sides():
    # two problems, both -1/2: reach = 1 - .025^(1/2) = .8419 of the way to -1 and to 1
    reach = 1 - 0.025**0.5
    found = paired_bootstrap_difference([0.0, 0.0], [0.5, 0.5])
    assert found == pytest.approx((-0.5, -0.5 - 0.5 * reach, -0.5 + 1.5 * reach))


@given(st.integers(2, 200), st.floats(0, 1))
def test_the_exact_interval_misses_the_true_score_with_at_most_its_error_level(n, chance):
    # n problems of chance `chance` agree on 0 with probability (1 - chance)^n; only then the interval is [0, high]
    if chance > unanimous_interval(0.0, n).high:
        assert (1 - chance) ** n <= 0.025 + 1e-12
