"""The figure shows the run's numbers, with a critic and without, and never fails on gaps."""

import json

import numpy as np
import pytest

from vapo.reports.curves import curves_figure, curves_png, curves_svg, trailing_mean
from vapo.reports.runfiles import column, read_run


def panels(run):
    return {axes.get_title(loc="left"): axes for axes in curves_figure(run).axes}


def width_of_png(path):
    return int.from_bytes(path.read_bytes()[16:20], "big")


def test_the_png_is_as_wide_as_a_readme(make_run, tmp_path):
    out = curves_png(make_run(steps=20), tmp_path / "docs" / "curves.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert width_of_png(out) == 1200


def test_a_vapo_run_has_all_its_panels_and_its_name(make_run):
    run = read_run(make_run(steps=20))
    titles = set(panels(run))
    assert {"Accuracy", "Explained variance", "Value loss", "Entropy (nats per token)", "Clipped tokens"} <= titles
    assert {"Response length (tokens)", "cut off at the limit", "Positive LM loss", "Time per step (s)"} <= titles
    words = " ".join(text.get_text() for text in curves_figure(run).texts)
    assert "maze-vapo-s0" in words
    assert "preset vapo  ·  task maze  ·  24 pretraining steps  ·  20 training steps" in words


def test_a_run_without_a_critic_has_no_empty_critic_panels(make_run):
    titles = set(panels(read_run(make_run("grpo", steps=20, critic=False))))
    assert not {"Explained variance", "Value loss"} & titles
    assert "Policy gradient norm" in titles  # another panel takes the place


def test_held_out_points_carry_their_intervals(make_run):
    run = read_run(make_run(steps=20))
    bars = panels(run)["Accuracy"].containers[0]
    steps, means = bars.lines[0].get_data(orig=False)
    np.testing.assert_array_equal(steps, [0, 10, 20])
    np.testing.assert_allclose(means, [e["avg"] for e in run.evaluations])
    (bar,) = bars.lines[2]
    np.testing.assert_allclose([s[:, 1] for s in bar.get_segments()], [[e["low"], e["high"]] for e in run.evaluations])


def test_explained_variance_keeps_the_phases_apart(make_run):
    run = read_run(make_run(steps=20, pretraining=10))
    lines = panels(run)["Explained variance"].lines
    before = [line for line in lines if len(line.get_xdata()) > 2 and max(line.get_xdata()) <= 0]
    during = [line for line in lines if len(line.get_xdata()) > 2 and min(line.get_xdata()) >= 1]
    assert before
    assert during
    expected = column(run.phase("pretrain"), "pretrain/explained_variance")[1]  # step 1 was null
    np.testing.assert_allclose(before[0].get_ydata(), expected)
    assert len(expected) == 9


@pytest.mark.parametrize("how", [{"steps": 0}, {"steps": 1, "pretraining": 1}])
def test_the_shortest_runs_can_be_drawn(make_run, tmp_path, how):
    assert width_of_png(curves_png(make_run(**how), tmp_path / "curves.png")) == 1200


def test_a_run_killed_in_pretraining_can_be_drawn(make_run, tmp_path):
    path = make_run(steps=1, pretraining=8)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    (path / "metrics.jsonl").write_text("\n".join(lines[:8]))
    (path / "evaluations.jsonl").write_text(
        json.dumps({"step": 0, "label": "before", "k": 1, "avg": 0.1, "low": None, "high": None})
    )
    run = read_run(path)
    assert "Explained variance" in panels(run)
    curves_png(path, tmp_path / "curves.png")


def test_the_same_run_gives_the_same_svg_twice(make_run):
    run = read_run(make_run(steps=0))
    svg = curves_svg(run)
    assert svg == curves_svg(run)
    assert svg.startswith("<svg")


def test_a_name_with_dollars_is_text_and_not_mathematics(make_run, tmp_path):
    curves_png(make_run("run_$\\frac$", steps=0), tmp_path / "curves.png")


def test_trailing_means_never_see_the_future():
    # window 2 over 1, 3, 5: 1, (1+3)/2, (3+5)/2
    assert trailing_mean([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    assert trailing_mean([], 3) == []
