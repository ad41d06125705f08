"""The figure shows the run's numbers, with and without a critic, and draws runs with missing data."""

import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vapo.metrics import Phase
from vapo.reports import curves
from vapo.reports.curves import curves_figure, curves_png, curves_svg, trailing_mean
from vapo.reports.runfiles import column, read_run


def first_lines(path, count):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))


def panels(run):
    return {axes.get_title(loc="left"): axes for axes in curves_figure(run).axes}


def width_of_png(path):
    return int.from_bytes(path.read_bytes()[16:20], "big")


def test_the_png_is_1200_pixels_wide(make_run, tmp_path):
    out = curves_png(make_run(), tmp_path / "docs" / "curves.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert width_of_png(out) == 1200


def test_a_vapo_run_has_all_panels_and_a_heading(make_run):
    run = read_run(make_run())
    titles = set(panels(run))
    assert {"Accuracy", "Explained variance", "Value loss", "Entropy (nats per token)", "Clipped tokens"} <= titles
    assert {"Response length (tokens)", "Cut off at the limit", "Time per step (s)"} <= titles
    assert "Positive LM loss (nats per token)" in titles
    words = " ".join(text.get_text() for text in curves_figure(run).texts)
    assert "maze-vapo-s0" in words
    assert "vapo  ·  task maze  ·  2 pretraining steps  ·  3 training steps" in words


def test_a_run_without_a_critic_has_no_empty_critic_panels(make_run):
    titles = set(panels(read_run(make_run("grpo"))))
    assert not {"Explained variance", "Value loss"} & titles
    assert "Policy gradient norm" in titles  # another panel takes the place


def test_a_run_of_value_pretraining_alone_has_no_blank_panels(make_run):
    path = make_run()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["phase"] == "pretrain"))
    (path / "evaluations.jsonl").write_text("")
    assert set(panels(read_run(path))) == {"Accuracy", "Explained variance", "Value loss"}


def test_every_panel_and_every_curve_has_data_in_one_of_the_recorded_runs(make_run):
    runs = [read_run(make_run(preset)) for preset in ("vapo", "grpo")]
    written = {key for run in runs for row in run.metrics for key in row}
    assert {key for panel in curves._PANELS for key in (*panel.keys, *panel.before)} <= written


def test_held_out_points_have_interval_bars(make_run):
    run = read_run(make_run())
    bars = panels(run)["Accuracy"].containers[0]
    steps, means = bars.lines[0].get_data(orig=False)
    np.testing.assert_array_equal(steps, [0, 1, 2, 3])
    np.testing.assert_allclose(means, [e["avg"] for e in run.evaluations])
    (bar,) = bars.lines[2]
    np.testing.assert_allclose([s[:, 1] for s in bar.get_segments()], [[e["low"], e["high"]] for e in run.evaluations])


def test_the_accuracy_legend_covers_no_curve(make_run):
    figure = curves_figure(read_run(make_run()))
    FigureCanvasAgg(figure).draw()
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Accuracy")
    legend, panel, title = (artist.get_window_extent() for artist in (axes.get_legend(), axes, axes._left_title))
    assert legend.y0 > panel.y1 - 1  # above the panel, up to a pixel of rounding
    assert not legend.overlaps(title)
    assert legend.x1 < panel.x1 + 1


def test_the_share_cut_off_is_drawn_below_the_top_of_its_panel(make_run):
    axes = panels(read_run(make_run()))["Cut off at the limit"]
    assert max(axes.lines[0].get_ydata()) < 0.95 * axes.get_ylim()[1]


def test_explained_variance_draws_pretraining_left_of_training(make_run):
    run = read_run(make_run())
    zero, during, before = panels(run)["Explained variance"].lines
    assert list(zero.get_ydata()) == [0, 0]
    assert max(before.get_xdata()) <= 0 < min(during.get_xdata())
    for line, phase, key in (
        (before, Phase.PRETRAIN, "pretrain/explained_variance"),
        (during, Phase.TRAIN, "value/explained_variance"),
    ):
        expected = column(run.phase(phase), key)[1]
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert len(expected) == {Phase.PRETRAIN: 2, Phase.TRAIN: 3}[phase]


@pytest.mark.parametrize("lines", [0, 1, 3])  # nothing, a pretraining step, the first joint one
def test_runs_of_at_most_three_lines_can_be_drawn(make_run, tmp_path, lines):
    path = make_run()
    first_lines(path / "metrics.jsonl", lines)
    first_lines(path / "evaluations.jsonl", min(lines, 1))
    assert width_of_png(curves_png(path, tmp_path / "curves.png")) == 1200


def test_a_run_killed_in_pretraining_can_be_drawn(make_run, tmp_path):
    path = make_run()
    first_lines(path / "metrics.jsonl", 2)
    first_lines(path / "evaluations.jsonl", 1)
    run = read_run(path)
    assert "Explained variance" in panels(run)
    curves_png(path, tmp_path / "curves.png")


def test_the_same_run_gives_the_same_svg_twice(make_run):
    run = read_run(make_run(begun=True))
    svg = curves_svg(run)
    assert svg == curves_svg(run)
    assert svg.startswith("<svg")


def test_dollar_signs_in_a_run_name_are_drawn_as_text(make_run, tmp_path):
    curves_png(make_run(name="run_$\\frac$", begun=True), tmp_path / "curves.png")


def test_trailing_means_use_earlier_values_only():
    # window 2 over 1, 3, 5: 1, (1+3)/2, (3+5)/2
    assert trailing_mean([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    assert trailing_mean([], 3) == []
