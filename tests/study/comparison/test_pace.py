"""Scores at equal time, areas under curves, runs that end low, and the correction for the number of comparisons."""

import json
from pathlib import Path

import numpy as np
import pytest

from vapo.evals.statistics import unanimous_interval
from vapo.study.comparison import compare_runs, comparison_html, read_results
from vapo.study.comparison.bootstrap import Estimate, degrees_of_freedom, paired_estimate
from vapo.study.comparison.dynamics import EXPLAINED
from vapo.study.comparison.figures import main_figure
from vapo.study.comparison.markdown import comparison_markdown
from vapo.study.comparison.multiple import holm, p_value, t_tail, unanimous_p_value
from vapo.study.comparison.pace_rows import has_pace, pace_explanations, pace_headings, pace_rows
from vapo.study.comparison.score_curves import RunCurve, mean_height
from vapo.study.comparison.table_rows import UNCORRECTED, column_explanations, comparison_headline, difference_text


def entry(results, method):
    return next(m for m in results["methods"] if m["method"] == method)


def test_scores_at_equal_time_match_hand_computed_values(small):
    assert small["equal"]["seconds"] == 59.0
    # VAPO's evaluations are at 12, 42 and 71 s: after 59 s it is 17/29 of the way from 3/8 to 7/8
    assert entry(small, "vapo")["equal_seconds"]["mean"] == pytest.approx(0.375 + 0.5 * 17 / 29, abs=1e-5)
    gap = entry(small, "grpo")["difference"]["equal_seconds"]
    assert gap["mean"] == pytest.approx(-0.5 * 17 / 29, abs=1e-5)
    assert gap["n"] == 2


WITH_CRITIC = {
    "method": "vapo", "base": "builtin", "seed": 0, "outcome": "finished",
    "critic": {"name": "c", "samples": 600, "tokens": 9, "seconds": 30.0, "gradient_steps": 80},
}  # fmt: skip
"""The card of a run whose shared critic took 30 seconds."""


def test_a_pair_is_compared_when_its_shorter_run_ends(make_cell, tmp_path):
    runs = [
        make_cell("a", k=4, steps=20, right=[[0], [2], [4]], cell=WITH_CRITIC),
        make_cell("b", k=4, steps=20, right=[[0], [0], [4]], preset="grpo"),
        make_cell("c", k=4, steps=10, right=[[0], [0], [1]], preset="ppo"),
    ]
    # evaluations are at 30, 89 and 148 s of VAPO, at 0, 59 and 118 of GRPO; PPO ends after 59
    results = compare_runs(runs, tmp_path / "out")
    gaps = entry(results, "grpo")["difference"]
    assert gaps["equal_seconds"]["mean"] == pytest.approx(-0.5 * 29 / 59, abs=1e-5)
    assert gaps["pair_seconds"]["mean"] == pytest.approx(1 - (0.5 + 0.5 * 29 / 59), abs=1e-5)
    assert len(pace_headings(results)) == len(pace_rows(results)[0]) == 8
    for gap in (method["difference"] for method in results["methods"] if method["difference"]):
        del gap["pair_seconds"]  # as an earlier version wrote it
    assert len(pace_headings(results)) == len(pace_rows(results)[0]) == 7


def test_the_seconds_of_a_shared_critic_count(make_cell, tmp_path):
    runs = [
        make_cell("a", k=4, steps=10, right=[[0], [2], [4]], cell=WITH_CRITIC),
        make_cell("b", k=4, steps=10, right=[[0], [2], [4]], preset="grpo"),
    ]
    # VAPO's evaluations are at 30, 60 and 89 s
    results = compare_runs(runs, tmp_path / "out")
    assert entry(results, "vapo")["equal_seconds"]["mean"] == pytest.approx(0.5 * 29 / 30, abs=1e-5)


def test_the_mean_of_a_curve_matches_hand_computed_values(small):
    assert small["equal"]["area_gradient_steps"] == 40
    # VAPO's curves 0, 1/2, 1 and 0, 1/4, 3/4 have the means 1/2 and 5/16; GRPO's 0, 1/4, 1/2 and 0, 1/8, 1/4 have
    # 1/4 and 1/8
    assert entry(small, "vapo")["area"]["mean"] == 0.40625
    assert entry(small, "grpo")["difference"]["area"]["mean"] == -0.21875


def test_the_height_of_a_curve_leaves_out_missing_verdicts_and_ends_where_it_is_told():
    curve = RunCurve(
        np.array([0.0, 10.0, 20.0]), np.array([[0.0, 0.5, np.nan], [np.nan, 1.0, np.nan], [1.0, 0, np.nan]])
    )
    np.testing.assert_allclose(mean_height(curve, 20.0), [0.5, 0.625, np.nan])
    np.testing.assert_allclose(mean_height(curve, 5.0), [0.125, 0.625, np.nan])
    np.testing.assert_allclose(mean_height(curve, 0.0), [0.0, 0.5, np.nan])


def test_a_run_ends_low_far_below_its_methods_median_or_below_its_first_evaluation(make_cell, tmp_path):
    rising = [[2] * 4, [10, 10, 9, 9]]
    rights = {"a": rising, "b": rising, "c": [[2] * 4, [8, 8, 8, 8]], "d": [[10] * 4, [9, 9, 9, 9]]}
    runs = [make_cell(name, k=10, seed=seed, right=right) for seed, (name, right) in enumerate(rights.items())]
    # finals .95, .95, .8 and .9: the median is .925, so .8 is less than .15 below it; d ends below its start of 1
    results = compare_runs(runs, tmp_path / "one")
    assert entry(results, "vapo")["ended_low"] == 1
    assert pace_rows(results)[0][5] == "1 of 4"
    runs.append(make_cell("e", k=10, seed=4, right=[[2] * 4, [7, 7, 7, 7]]))
    assert entry(compare_runs(runs, tmp_path / "two"), "vapo")["ended_low"] == 2


def test_students_tail_matches_tables():
    for df, t in ((1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (5000, 1.960)):
        assert t_tail(t, df) == pytest.approx(0.05, abs=2e-4)
    assert t_tail(0.0, 3) == pytest.approx(1.0)
    assert t_tail(5.841, 3) == pytest.approx(0.01, abs=1e-4)


def test_a_p_value_is_below_5_percent_where_the_interval_excludes_0():
    rng = np.random.default_rng(0)
    ps = []
    for shift in np.linspace(0, 0.4, 30):
        scores = np.clip(rng.normal(0.4 + shift, 0.12, (5, 1)) + rng.normal(0, 0.1, (5, 20)), 0, 1)
        gap = paired_estimate(scores, np.full((5, 20), 0.4), ["a"] * 5, resamples=500)
        p = p_value(gap, degrees_of_freedom(scores - 0.4, ["a"] * 5))
        assert (p < 0.05) == (gap.low > 0 or gap.high < 0) or p == pytest.approx(0.05, abs=5e-4)
        ps.append(p)
    assert min(ps) < 0.05 < max(ps)


def test_p_values_of_equal_resamples_are_0_or_1_and_those_without_interval_are_missing():
    assert p_value(Estimate(0.5, 0.5, 0.5, 3), 2) == 0.0
    assert p_value(Estimate(0.0, 0.0, 0.0, 3), 2) == 1.0
    assert np.isnan(p_value(Estimate(0.5, np.nan, np.nan, 1), 2))


@pytest.mark.parametrize(("difference", "num_prompts"), [(0.02, 40), (0.1, 38), (0.1, 40), (-0.2, 20), (-0.2, 21)])
def test_the_p_value_of_equal_differences_is_below_5_percent_where_their_interval_excludes_0(difference, num_prompts):
    found = unanimous_interval(difference, num_prompts, bounds=(-1.0, 1.0))
    assert (unanimous_p_value(difference, num_prompts) < 0.05) == (found.low > 0 or found.high < 0)


def test_holm_multiplies_and_keeps_the_order():
    # .01·4, .02·3, .03·2 raised to .06, .5·1
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([]) == []


def test_differences_are_corrected_for_the_number_of_methods(grid, tmp_path):
    results = compare_runs(grid, tmp_path / "out")
    gaps = [m["difference"] for m in results["methods"] if m["difference"]]
    for reading in ("final", "equal_seconds", "area"):
        ps = [gap[reading]["p"] for gap in gaps]
        np.testing.assert_allclose([gap[reading]["p_holm"] for gap in gaps], holm(ps), rtol=1e-4)
    assert "correction for the 11 differences of its column" in " ".join(column_explanations(results))


@pytest.mark.parametrize(("p", "stars"), [({"p_holm": 0.2}, "*"), ({"p_holm": 0.03}, "**"), ({}, "*")])
def test_two_asterisks_mark_a_difference_that_survives_the_correction(small, p, stars):
    method = {**entry(small, "grpo"), "difference": {"final": {**GAP, **p}}}
    assert difference_text(method, "final") == f"-0.500 [-0.600, -0.400] {stars}"


GAP = {"mean": -0.5, "low": -0.6, "high": -0.4, "n": 2, "excludes_zero": True}


def test_the_headline_makes_no_claim_that_the_correction_takes_back(small):
    entry(small, "grpo")["difference"]["final"] |= {"excludes_zero": True, "p_holm": 0.01}
    assert "worse: grpo (-0.500)" in comparison_headline(small)
    entry(small, "grpo")["difference"]["final"] |= {"p_holm": 0.2}
    assert f"{UNCORRECTED}: grpo (-0.500)" in comparison_headline(small)


def test_a_second_processor_is_named_beside_the_scores_at_equal_time(make_cell, tmp_path):
    runs = [make_cell("a"), make_cell("b", preset="grpo")]
    for run, name in zip(runs, ("fast", "slow"), strict=True):
        (run / "environment.json").write_text(json.dumps({"commit": "ab", "processor": name}))
    text = " ".join(pace_explanations(compare_runs(runs, tmp_path / "out")))
    assert "made on 2 processors (fast; slow)" in text


def test_the_third_table_is_in_table_and_page(small):
    assert pace_headings(small)[1] == "at 1.0 minutes, pretraining counted"
    vapo = next(row for row in pace_rows(small) if row[0] == "vapo")
    assert vapo[-2:] == ["0 of 2", "0.300 (0.300)"]
    assert next(row for row in pace_rows(small) if row[0] == "grpo")[-1] == "–"
    assert "## At equal time, and along training" in comparison_markdown(small)
    assert '<section id="time">' in comparison_html(small)


def test_the_figure_has_the_explained_variance_of_methods_with_a_critic_beside_the_curves(small):
    figure = main_figure(small)
    assert len(figure.axes) == 5
    assert len([line for line in figure.axes[2].lines if np.size(line.get_xdata()) > 2]) == 1
    for method in small["methods"]:
        method["dynamics"][EXPLAINED] = None
    assert len(main_figure(small).axes) == 4


@pytest.mark.parametrize("name", ["maze", "long"])
def test_results_of_older_versions_have_no_third_table_and_the_same_text(name):
    folder = Path(__file__).parents[3] / "results" / name
    results = read_results(folder / "results.json")
    assert not has_pace(results)
    assert comparison_markdown(results) == (folder / "table.md").read_text()
    assert '<section id="time">' not in comparison_html(results)
