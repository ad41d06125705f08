"""Curves of held-out scores: read between evaluations, averaged, and timed to a target."""

import numpy as np
import pytest

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


def test_a_prompt_not_judged_at_one_end_is_unknown_between_but_not_at_the_other_end():
    run = curve([0, 10], [0.0, 0.5], [1.0, np.nan])
    np.testing.assert_equal(rates_at(run, 5), [0.5, np.nan])
    np.testing.assert_equal(rates_at(run, 0), [0.0, 0.5])


def test_of_two_evaluations_at_one_place_the_newest_counts():
    run = curve([0, 10, 10], [0.0], [0.4], [0.6])
    assert rates_at(run, 10).tolist() == [0.6]
    assert rates_at(run, 5).tolist() == [0.3]


def test_mean_curves_keep_the_places_that_all_runs_share():
    x, means = mean_curves([curve([0, 10], [0.0], [1.0]), curve([0, 10], [0.2], [0.6])])
    assert x.tolist() == [0, 10]
    assert means.tolist() == [[0.0, 1.0], [0.2, 0.6]]


def test_mean_curves_cover_the_stretch_that_all_runs_have():
    runs = [curve([0, 10], [0.0], [1.0]), curve([4, 20], [0.0], [1.0])]
    x, means = mean_curves(runs)
    assert (x[0], x[-1]) == (4, 10)
    np.testing.assert_allclose(means[:, [0, -1]], [[0.4, 1.0], [0.0, 6 / 16]])
    assert mean_curves(runs, exact=True)[0].tolist() == [4, 10]


def test_first_reach_is_the_first_crossing_and_not_the_last():
    x = np.array([0.0, 10.0, 20.0, 30.0])
    curves = np.array([
        [0.1, 0.3, 0.2, 0.6],  # at .2 halfway to 10, although it falls back to .2 later
        [0.0, 0.1, 0.1, 0.1],  # never
        [0.5, 0.0, 0.0, 0.0],  # before training
        [0.0, 0.0, 0.0, 0.2],  # exactly at the end
    ])  # fmt: skip
    np.testing.assert_allclose(first_reach(x, curves, np.full(4, 0.2)), [5.0, np.inf, 0.0, 30.0])


def test_a_curve_twice_as_steep_arrives_after_half_the_steps():
    steep = [curve([0, 100], [0.0] * 3, [1.0] * 3)] * 2
    found = steps_until_target(steep, ["a"] * 2, np.full((2, 3), 0.5), ["a"] * 2, paired=False)
    assert found == (50.0, 50.0, 50.0, 1.0)


def test_an_arrival_that_some_resamples_miss_has_an_open_end():
    runs = [curve([0, 100], [0.0] * 2, [0.4] * 2), curve([0, 100], [0.0] * 2, [0.8] * 2)]
    found = steps_until_target(runs, ["a"] * 2, np.full((2, 2), 0.5), ["a"] * 2, paired=False)
    # the mean ends at .6: 500/6; of one run drawn, .4 never arrives and .8 at 62.5
    assert found.x == pytest.approx(250 / 3)
    assert (found.low, found.high) == (62.5, np.inf)
    assert found.reached == pytest.approx(0.5, abs=0.05)


def test_what_is_to_be_reached_arrives_at_itself_in_every_resample():
    # rising curves of unlike runs: drawn together with their own ends, each resample reaches its end at the end
    runs = [curve([0, 100], [0.0] * 2, [0.4] * 2), curve([0, 100], [0.0] * 2, [0.8] * 2)]
    found = steps_until_target(runs, ["a"] * 2, np.array([[0.4] * 2, [0.8] * 2]), ["a"] * 2, paired=True)
    assert found == (100.0, 100.0, 100.0, 1.0)


def test_one_run_arrives_without_an_interval():
    found = steps_until_target(
        [curve([0, 10], [0.0], [1.0])], ["a"], np.array([[0.3], [0.5]]), ["a", "a"], paired=False
    )
    assert found.x == pytest.approx(4.0)
    assert np.isnan([found.low, found.high, found.reached]).all()
