"""The figures of a comparison, made from the content of `results.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vapo.metrics import metric_called
from vapo.reports.formatting import figure as formatted
from vapo.reports.formatting import signed
from vapo.reports.palette import LIGHT
from vapo.reports.runfiles import Record, number
from vapo.reports.style import as_png, as_svg, frame, themed
from vapo.study.comparison import drawing
from vapo.study.comparison.dynamics import BIAS, CURVES, EXPLAINED
from vapo.study.comparison.table_rows import comparison_title, final_scores

AXES = {"gradient_steps": "gradient steps", "samples": "training samples, pretraining counted"}
_AROUND_ZERO = (EXPLAINED, "value/residual_explained_variance")
_ROW = 0.31  # height of one row of a forest plot, in inches
_ONE_SEED_DASHES = (0, (2.2, 1.2))
ONE_RUN = "dashed: one run, interval over prompts only"
ONE_PAIR = "dashed: one pair of runs, interval over prompts only"
_DASHES: tuple[str | tuple, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1.2)))


class Dot(NamedTuple):
    """One row of a forest plot: a mean, its interval (nan where there is none), and the scores of single runs."""

    name: str
    mean: float
    low: float
    high: float
    runs: list[float]
    hue: str
    label: str
    filled: bool = True
    over_prompts: bool = False
    """Whether the interval covers the prompts of one run, or pair of runs, and not other seeds."""


def main_png(results: Record, path: Path) -> None:
    """Draw learning curves, final scores and differences into one PNG, 1200 pixels wide."""
    as_png(lambda: main_figure(results, heading=True), path)


def main_svg(results: Record) -> str:
    """The same figure without a heading, for embedding in a page."""
    return themed(as_svg(lambda: main_figure(results)))


def variations_svg(results: Record) -> str | None:
    """One panel for each method without its own colour, with the reference; None if all methods have colours."""
    return themed(as_svg(lambda: variations_figure(results))) if _quiet_methods(results) else None


def dynamics_svg(results: Record) -> str | None:
    """Curves of training metrics; None if no run has them."""
    return themed(as_svg(lambda: dynamics_figure(results))) if _panels(results) else None


def main_figure(results: Record, *, heading: bool = False) -> Figure:
    """Learning curves with bands and the critic's explained variance, above forest plots of scores and differences."""
    scored = _scored(results)
    names = _colours(results)
    key = {m["method"]: names[m["method"]] for m in scored if m["method"] in names}
    finals, differences = [_final_dot(m, results, names) for m in scored], [_difference_dot(m, names) for m in scored]
    dashed = any(dot.over_prompts for dot in (*finals, *differences))
    title = drawing.fitted(comparison_title(results), 9.5, 14, lines=2, weight="bold")
    over_key = 0.62 + 0.27 * title.count("\n") if heading else 0.1
    above, curves, between = over_key + 0.4 + 0.19 * drawing.legend_rows(key), 2.75, 0.95
    below = 0.75 if dashed else 0.6
    forest = max(3, len(scored)) * _ROW + 0.1
    height = above + curves + between + forest + below
    figure = drawing.new_figure(height)
    if heading:
        figure.text(
            0.022,
            1 - 0.2 / height,
            title,
            color=LIGHT.ink,
            va="top",
            fontsize=14,
            weight="bold",
        )
    drawing.legend(figure, key, 1 - over_key / height)
    explained = [m for m in scored if m["method"] in names and _points(m, EXPLAINED)]
    columns = len(AXES) + bool(explained)
    step = 0.97 / columns

    def panel(column: int) -> Axes:
        place = (0.062 + step * column, 1 - (above + curves) / height, step - 0.047, (curves - 0.1) / height)
        return figure.add_axes(place)

    for column, (axis, label) in enumerate(AXES.items()):
        axes = panel(column)
        frame(axes, f"Held-out score over {axis.replace('_', ' ')}")
        for method in scored:
            if method["method"] in names:
                drawing.band(axes, method["curves"][axis], names[method["method"]])
        _finish_curves(axes, label)
    if explained:
        axes = panel(len(AXES))
        frame(axes, "Explained variance of the critic")
        for method in explained:
            axes.plot(*(_points(method, EXPLAINED) or ([], [])), color=names[method["method"]], linewidth=1.8)
        _finish_dynamics(axes, EXPLAINED)
    bottom = below / height
    left = figure.add_axes((0.245, bottom, 0.3, forest / height))
    right = figure.add_axes((0.625, bottom, 0.3, forest / height))
    frame(left, f"avg@{results['k']} after training", grid="x")
    _forest(left, finals, labelled=True)
    frame(
        right, f"Difference to {drawing.fitted(results['reference'], 1.3, 10, weight='bold')}, seed by seed", grid="x"
    )
    right.axvline(0, color=LIGHT.quiet, linewidth=1)
    _forest(right, differences, labelled=False)
    drawing.label_x(left, "dot: mean, bar: 95 % interval, rings: single runs" + (f"\n{ONE_RUN}" if dashed else ""))
    drawing.label_x(right, "filled: two or more pairs, interval without 0" + (f"\n{ONE_PAIR}" if dashed else ""))
    return figure


def variations_figure(results: Record) -> Figure:
    """One small panel per variation, with its curve and that of the reference, over gradient steps."""
    quiet, columns = _quiet_methods(results), 4
    num_rows = math.ceil(len(quiet) / columns)
    height = 0.35 + 1.95 * num_rows
    figure = drawing.new_figure(height)
    grid = figure.add_gridspec(
        num_rows, columns, left=0.05, right=0.985, top=1 - 0.5 / height, bottom=0.42 / height, wspace=0.2, hspace=0.62
    )
    reference = next(m for m in results["methods"] if m["method"] == results["reference"])
    hue = _colours(results)[results["reference"]]
    if hue == LIGHT.ink:
        hue = LIGHT.quiet  # the variations are drawn in ink here
    shown = [m["curves"]["gradient_steps"]["mean"] for m in (*quiet, reference)]
    top = max((score for means in shown for score in means), default=1.0)
    for place, method in enumerate(quiet):
        axes = figure.add_subplot(grid[place // columns, place % columns])
        frame(axes, "")
        name = method["method"].removeprefix(f"{results['reference']} ")
        axes.set_title(
            drawing.fitted(name, 2.1, 8.5, lines=2, weight="bold"),
            loc="left",
            fontsize=8.5,
            weight="bold",
            color=LIGHT.ink,
            pad=5,
        )
        drawing.band(axes, reference["curves"]["gradient_steps"], hue, width=1.3)
        drawing.band(axes, method["curves"]["gradient_steps"], LIGHT.ink)
        axes.xaxis.set_major_formatter(drawing.AS_COUNT)
        axes.set_ylim(0, min(1.0, max(0.05, 1.15 * top)))
    return figure


def dynamics_figure(results: Record) -> Figure:
    """One row per metric: methods with a colour on the left, labelled variations on the right."""
    panels, scored = _panels(results), _scored(results)
    names = _colours(results)
    quiet = _quiet_methods(results)
    legend = {m["method"]: names[m["method"]] for m in scored if m["method"] in names}
    above = 0.43 + 0.19 * drawing.legend_rows(legend)
    height = above + 2.0 * len(panels)
    figure = drawing.new_figure(height)
    drawing.legend(figure, legend, 1 - 0.1 / height)
    width = 0.37 if quiet else 0.92
    for row, (key, title) in enumerate(panels.items()):
        bottom, tall = 1 - (above + 2.0 * row + 1.6) / height, 1.36 / height
        left = figure.add_axes((0.058, bottom, width, tall))
        frame(left, title)
        for method in scored:
            if method["method"] in names and (points := _points(method, key)):
                left.plot(*points, color=names[method["method"]], linewidth=1.8)
        _finish_dynamics(left, key)
        if quiet:
            right = figure.add_axes((0.475, bottom, width - 0.04, tall), sharey=left)
            frame(right, "")
            right.tick_params(labelleft=False)
            _labelled_lines(right, key, quiet)
            _finish_dynamics(right, key)
            low, high = _limits(results, key)
            left.set_ylim(low, high)
            _label_ends(right, key, quiet, low, high)
    return figure


def _finish_curves(axes: Axes, label: str) -> None:
    axes.set_xlim(left=0)
    axes.set_ylim(0, min(1.0, max(0.05, 1.06 * axes.get_ylim()[1])))
    axes.xaxis.set_major_formatter(drawing.AS_COUNT)
    drawing.label_x(axes, label)


def _forest(axes: Axes, dots: list[Dot], *, labelled: bool) -> None:
    """Draw dots with intervals, the first on top, with their values at the right edge."""
    for row, dot in enumerate(dots):
        axes.plot(dot.runs, [row] * len(dot.runs), "o", markersize=3.6, fillstyle="none", color=dot.hue, alpha=0.55)
        if not math.isnan(dot.low):
            style = _ONE_SEED_DASHES if dot.over_prompts else "-"
            axes.plot(
                [dot.low, dot.high],
                [row, row],
                color=dot.hue,
                linewidth=2,
                linestyle=style,
                solid_capstyle="butt",
                dash_capstyle="butt",
            )
        if not math.isnan(dot.mean):
            face = dot.hue if dot.filled else LIGHT.paper
            axes.plot([dot.mean], [row], "o", markersize=6.5, color=dot.hue, markerfacecolor=face, zorder=4)
        axes.annotate(
            dot.label,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=LIGHT.ink if dot.filled else LIGHT.quiet,
        )
    axes.set_ylim(len(dots) - 0.45, -0.55)
    axes.set_yticks(
        range(len(dots)), [drawing.fitted(dot.name, 2.25, 8.5, lines=2) if labelled else "" for dot in dots]
    )
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=LIGHT.ink)
    axes.margins(x=0.06)


def _final_dot(method: Record, results: Record, names: dict[str, str]) -> Dot:
    name, final = method["method"], method["final"]
    hue, runs = names.get(name, LIGHT.quiet), final_scores(results, name)
    low, high = number(final["low"]), number(final["high"])
    return Dot(name, final["mean"], low, high, runs, hue, formatted(final["mean"]), over_prompts=_over_prompts(final))


def _difference_dot(method: Record, names: dict[str, str]) -> Dot:
    hue = names.get(method["method"], LIGHT.quiet)
    if method["difference"] is None:
        return Dot(method["method"], math.nan, math.nan, math.nan, [], hue, "reference", filled=False)
    gap = method["difference"]["final"]
    mean, low, high = (number(gap[key]) for key in ("mean", "low", "high"))
    label = "no pairs" if math.isnan(mean) else signed(mean)
    filled = bool(gap["excludes_zero"])
    return Dot(method["method"], mean, low, high, [], hue, label, filled=filled, over_prompts=_over_prompts(gap))


def _over_prompts(estimate: Record) -> bool:
    return estimate["n"] == 1 and estimate["low"] is not None


def _scored(results: Record) -> list[Record]:
    return [method for method in results["methods"] if method["final"]["n"]]


def _colours(results: Record) -> dict[str, str]:
    return drawing.colours([method["method"] for method in results["methods"]], results["reference"])


def _quiet_methods(results: Record) -> list[Record]:
    names = _colours(results)
    return [method for method in _scored(results) if method["method"] not in names]


def _panels(results: Record) -> dict[str, str]:
    """The metrics that at least one method has, with the titles of their panels."""
    keys = {key: metric_called(key).heading for key in CURVES}
    keys["bias"] = f"{metric_called(BIAS + '/0').heading}, last quarter of training"
    return {key: title for key, title in keys.items() if any(_points(m, key) for m in _scored(results))}


def _points(method: Record, key: str) -> tuple[list[float], list[float]] | None:
    if key == "bias":
        bias = method["bias_by_position"]
        return ([10 * d + 5 for d in range(len(bias))], [number(b) for b in bias]) if bias else None
    curve = method["dynamics"].get(key)  # an older version did not record every metric
    return (curve["step"], curve["mean"]) if curve else None


def _finish_dynamics(axes: Axes, key: str) -> None:
    if key == "bias":
        axes.set_xlim(0, 100)
        drawing.label_x(axes, "percent of the response")
    else:
        axes.set_xlim(left=0)
        drawing.label_x(axes, "training step")
    if key == "bias" or key in _AROUND_ZERO:
        axes.axhline(0, color=LIGHT.quiet, linewidth=0.8, alpha=0.6)


def _labelled_lines(axes: Axes, key: str, methods: list[Record]) -> None:
    for index, method in enumerate(methods):
        if points := _points(method, key):
            axes.plot(*points, color=LIGHT.quiet, linewidth=1.3, linestyle=_DASHES[index % len(_DASHES)])


def _label_ends(axes: Axes, key: str, methods: list[Record], low: float, high: float) -> None:
    """Write each line's name to the right of its end, spread out, and connect both with a thin line."""
    ends = [(method["method"], *points) for method in methods if (points := _points(method, key))]
    places = [(_last(values) - low) / (high - low) for _, _, values in ends]
    for (name, steps, _), place, moved in zip(
        ends, places, drawing.spread_out(places, 0.115, -0.08, 1.08), strict=True
    ):
        axes.annotate(
            drawing.fitted(name.removeprefix("vapo "), 1.6, 7.5),
            (steps[-1], low + place * (high - low)),
            xytext=(1.06, moved),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=LIGHT.ink,
            arrowprops={
                "arrowstyle": "-",
                "color": LIGHT.quiet,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0, 0.5),
            },
        )


def _last(values: list[float]) -> float:
    known = [number(value) for value in values if not math.isnan(number(value))]
    return known[-1] if known else 0.0


def _limits(results: Record, key: str) -> tuple[float, float]:
    values = [v for m in _scored(results) for v in (_points(m, key) or ([], []))[1]]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.05
    return low - room, high + room
