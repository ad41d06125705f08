"""Curves of held-out scores: interpolation, means over runs, and the steps to a target."""

import numpy as np
import pytest

from vapo.study.comparison import compare_runs
from vapo.study.comparison.score_curves import RunCurve, first_reach, mean_curves, rates_at, steps_until_target


def curve(x, *rates):
    return RunCurve(np.array(x, dtype=float), np.array(rates, dtype=float))


def test_a_curve_is_linear_between_evaluations_and_flat_outside():
    run = curve([10, 20], [0.0, 1.0], [1.0, 0.5])
    assert rates_at(run, 10).tolist() == [0.0, 1.0]
    assert rates_at(run, 12.5).tolist() == [0.25, 0.875]
    assert rates_at(run, 20).tolist() == [1.0, 0.5]
    assert rates_at(run, 0).tolist() == [0.0, 1.0]
    assert rates_at(run, 99).tolist() == [1.0, 0.5]


def test_a_prompt_not_judged_in_one_evaluation_is_nan_between_it_and_its_neighbour():
    run = curve([0, 10], [0.0, 0.5], [1.0, np.nan])
    np.testing.assert_equal(rates_at(run, 5), [0.5, np.nan])
    np.testing.assert_equal(rates_at(run, 0), [0.0, 0.5])


def test_the_newest_of_two_evaluations_at_the_same_x_is_used():
    run = curve([0, 10, 10], [0.0], [0.4], [0.6])
    assert rates_at(run, 10).tolist() == [0.6]
    assert rates_at(run, 5).tolist() == [0.3]


def test_mean_curves_keep_the_x_that_all_runs_share():
    x, means = mean_curves([curve([0, 10], [0.0], [1.0]), curve([0, 10], [0.2], [0.6])])
    assert x.tolist() == [0, 10]
    assert means.tolist() == [[0.0, 1.0], [0.2, 0.6]]


def test_mean_curves_cover_the_range_that_all_runs_have():
    runs = [curve([0, 10], [0.0], [1.0]), curve([4, 20], [0.0], [1.0])]
    x, means = mean_curves(runs)
    assert (x[0], x[-1]) == (4, 10)
    np.testing.assert_allclose(means[:, [0, -1]], [[0.4, 1.0], [0.0, 6 / 16]])
    assert mean_curves(runs, exact=True)[0].tolist() == [4, 10]


def test_first_reach_returns_the_first_crossing():
    x = np.array([0.0, 10.0, 20.0, 30.0])
    curves = np.array([
        [0.1, 0.3, 0.2, 0.6],  # at .2 halfway to 10, although it falls back to .2 later
        [0.0, 0.1, 0.1, 0.1],  # never
        [0.5, 0.0, 0.0, 0.0],  # before training
        [0.0, 0.0, 0.0, 0.2],  # exactly at the end
    ])  # fmt: skip
    np.testing.assert_allclose(first_reach(x, curves, np.full(4, 0.2)), [5.0, np.inf, 0.0, 30.0])


def test_a_curve_twice_as_steep_reaches_the_target_after_half_the_steps():
    steep = [curve([0, 100], [0.0] * 3, [1.0] * 3)] * 2
    found = steps_until_target(steep, ["a"] * 2, np.full((2, 3), 0.5), ["a"] * 2, paired=False)
    assert found == (50.0, 50.0, 50.0, 1.0)


def test_the_interval_ends_at_infinity_if_some_resamples_miss_the_target():
    runs = [curve([0, 100], [0.0] * 2, [0.4] * 2), curve([0, 100], [0.0] * 2, [0.8] * 2)]
    found = steps_until_target(runs, ["a"] * 2, np.full((2, 2), 0.5), ["a"] * 2, paired=False)
    # the mean ends at .6 and reaches .5 at 500/6; a single drawn run ends at .4 (never reaches it) or .8 (at 62.5)
    assert found.x == pytest.approx(250 / 3)
    assert (found.low, found.high) == (62.5, np.inf)
    assert found.reached == pytest.approx(0.5, abs=0.05)


def test_a_method_reaches_its_own_final_score_at_its_last_step_in_every_resample():
    # curves rise to different ends; runs and targets are drawn together, so each resample reaches its target at the end
    runs = [curve([0, 100], [0.0] * 2, [0.4] * 2), curve([0, 100], [0.0] * 2, [0.8] * 2)]
    found = steps_until_target(runs, ["a"] * 2, np.array([[0.4] * 2, [0.8] * 2]), ["a"] * 2, paired=True)
    assert found == (100.0, 100.0, 100.0, 1.0)


def test_one_run_has_steps_to_the_target_without_an_interval():
    found = steps_until_target(
        [curve([0, 10], [0.0], [1.0])], ["a"], np.array([[0.3], [0.5]]), ["a", "a"], paired=False
    )
    assert found.x == pytest.approx(4.0)
    assert np.isnan([found.low, found.high, found.reached]).all()


def test_curves_without_a_common_x_have_no_mean_and_reach_no_target():
    apart = [curve([0, 10], [0.0], [1.0]), curve([20, 30], [0.2], [0.6])]
    x, means = mean_curves(apart)
    assert (len(x), means.shape) == (0, (2, 0))
    found = steps_until_target(apart, ["a", "a"], np.array([[0.5], [0.5]]), ["a", "a"], paired=True)
    assert np.isnan(found).all()


def test_a_comparison_of_runs_without_a_common_x_has_an_empty_curve(make_cell, tmp_path):
    runs = [make_cell("short", per_step=10), make_cell("late", seed=1, pretraining=4000)]
    results = compare_runs(runs, tmp_path / "out")
    assert results["methods"][0]["curves"]["samples"]["x"] == []
    assert len(results["methods"][0]["curves"]["gradient_steps"]["x"]) > 1
