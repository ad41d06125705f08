"""The judgement of a critic as one figure: the ceiling first, then how the critic falls short of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vapo.reports.critic_tables import judgement_subtitle, judgement_title
from vapo.reports.formatting import one_line
from vapo.reports.palette import LIGHT
from vapo.reports.runfiles import Record, number
from vapo.reports.style import as_png, as_svg, frame

_AS_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
_WIDTH = 10.0


def judgement_png(results: Record, out: Path) -> None:
    """Draw the figure, with its heading, into a PNG of 1200 pixels' width."""
    as_png(lambda: judgement_figure(results), out)


def judgement_svg(results: Record) -> str:
    """The same figure as an `<svg>` element without a heading."""
    return as_svg(lambda: judgement_figure(results, heading=False))


def judgement_figure(results: Record, *, heading: bool = True) -> Figure:
    """Explained variance under the ceiling; with a critic also calibration, error and what it does to advantages."""
    panels: list[tuple[str, Callable[[Axes, Record], None]]] = [("variance that can be explained", _ceiling)]
    if "explained_variance" in results["by_position"]:
        panels += [
            ("calibration", _calibration),
            ("error of the critic, in units of reward", _error),
            ("ranking", _ranking),
        ]
    panels.append(("variance of advantages", _variance))
    rows, columns = (2, 3) if len(panels) == 5 else (1, 2)
    above = 1.05 if heading else 0.4
    height = above + 2.85 * rows
    figure = Figure(figsize=(_WIDTH, height), dpi=120, facecolor=LIGHT.paper)
    grid = figure.add_gridspec(
        rows, columns, left=0.06, right=0.985, top=1 - above / height, bottom=0.55 / height, wspace=0.26, hspace=0.42
    )
    if heading:
        figure.text(0.022, 1 - 0.16 / height, one_line(judgement_title(results)), va="top", fontsize=14,
                    weight="bold", color=LIGHT.ink)  # fmt: skip
        figure.text(0.022, 1 - 0.46 / height, one_line(judgement_subtitle(results)), va="top", fontsize=8.5,
                    color=LIGHT.quiet)  # fmt: skip
    # the panel that answers the question is the widest
    places = [grid[0, :2], grid[0, 2], grid[1, 0], grid[1, 1], grid[1, 2]] if rows == 2 else [grid[0, 0], grid[0, 1]]
    for (title, draw), place in zip(panels, places, strict=True):
        axes = figure.add_subplot(place)
        frame(axes, title, grid="both" if draw is _calibration else "y")
        draw(axes, results)
    return figure


def _ceiling(axes: Axes, results: Record) -> None:
    x = _positions(results)
    _with_band(axes, results, "ceiling", LIGHT.third, "ceiling: any critic")
    _with_band(axes, results, "explained_variance", LIGHT.first, "this critic")
    group = results["figures"]["group_explained_variance"]
    axes.axhline(number(group["value"]), color=LIGHT.second, linewidth=1.4, linestyle=(0, (5, 2)),
                 label="mean of the group's other responses")  # fmt: skip
    axes.axhline(0, color=LIGHT.quiet, linewidth=0.8, alpha=0.6)
    values = [number(figure[end]) for name in ("ceiling", "explained_variance")
              for figure in results["by_position"].get(name, []) for end in ("value", "low", "high")]  # fmt: skip
    known = [v for v in [*values, number(group["value"])] if v == v]
    # a critic that is far off would press everything else to the top
    axes.set_ylim(max(-1.0, min([0.0, *known]) - 0.04), min(1.1, max([0.2, *known]) * 1.08))
    axes.yaxis.set_major_formatter(_AS_PERCENT)
    _name_positions(axes, x)
    _legend(axes)


def _calibration(axes: Axes, results: Record) -> None:
    bins = results["bins"]
    value = np.array([number(b["value"]) for b in bins])
    outcome = np.array([number(b["monte_carlo"]) for b in bins])
    spread = 1.96 * np.sqrt([number(b["noise"]) for b in bins])
    low, high = map(number, results["reward"])
    # the part of the diagonal where states are: the ends of the range may be far from all of them
    shown = [*value, *outcome, *np.clip([*(outcome - spread), *(outcome + spread)], low, high)]
    ends = [min(shown), max(shown)] if shown and min(shown) < max(shown) else [low, high]
    axes.plot(ends, ends, color=LIGHT.quiet, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.errorbar(value, outcome, yerr=spread, fmt="o-", color=LIGHT.first, markersize=4, linewidth=1.3, elinewidth=1.1)
    room = 0.06 * (ends[1] - ends[0])
    for axis, set_limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        set_limits(ends[0] - room, ends[1] + room)
        axis.set_major_locator(MaxNLocator(5))  # the same ticks on both
    axes.set_xlabel("critic's value", fontsize=8.5, color=LIGHT.quiet, labelpad=2)
    axes.set_ylabel("Monte-Carlo value", fontsize=8.5, color=LIGHT.quiet, labelpad=2)


def _error(axes: Axes, results: Record) -> None:
    _with_band(axes, results, "rmse", LIGHT.second, "RMSE")
    _with_band(axes, results, "bias", LIGHT.first, "bias")
    axes.axhline(0, color=LIGHT.quiet, linewidth=0.8, alpha=0.6)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    _name_positions(axes, _positions(results))
    _legend(axes, columns=2)


def _ranking(axes: Axes, results: Record) -> None:
    _with_band(axes, results, "within_group_auc", LIGHT.fourth, "AUC within groups")
    _with_band(axes, results, "spearman", LIGHT.first, "rank correlation")
    axes.axhline(0.5, color=LIGHT.fourth, linewidth=0.9, linestyle=(0, (3, 2)), alpha=0.8)
    low, _ = axes.get_ylim()
    axes.set_ylim(min(0.0, low), 1.38)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    _name_positions(axes, _positions(results))
    _legend(axes)


def _variance(axes: Axes, results: Record) -> None:
    _with_band(axes, results, "best_variance_ratio", LIGHT.third, "an exact critic")
    _with_band(axes, results, "variance_ratio", LIGHT.first, "this critic")
    axes.axhline(1, color=LIGHT.second, linewidth=1.4, linestyle=(0, (5, 2)), label="the group's mean: 1")
    known = [number(figure["value"]) for name in ("best_variance_ratio", "variance_ratio")
             for figure in results["by_position"].get(name, [])]  # fmt: skip
    top = min(4.0, max([1.1, *(v for v in known if v == v)]))
    axes.set_ylim(0, top * 1.5)
    _name_positions(axes, _positions(results))
    _legend(axes)


def _with_band(axes: Axes, results: Record, name: str, hue: str, label: str) -> None:
    """A number by position with its 95 % interval; nothing where the judgement has no such number."""
    by_position = results["by_position"].get(name)
    if not by_position:
        return
    x = _positions(results)
    value, low, high = (np.array([number(t[end]) for t in by_position]) for end in ("value", "low", "high"))
    axes.plot(x, value, "o-", color=hue, linewidth=1.8, markersize=4, label=label)
    if not np.isnan(low).all():
        axes.fill_between(x, low, high, color=hue, alpha=0.15, linewidth=0)


def _positions(results: Record) -> list[float]:
    return [100 * float(f) for f in results["fractions"]]


def _name_positions(axes: Axes, x: list[float]) -> None:
    axes.set_xlim(min(0.0, *x) - 3, 103)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("percent of the response", fontsize=8.5, color=LIGHT.quiet, labelpad=2)


def _legend(axes: Axes, columns: int = 1) -> None:
    box = axes.legend(loc="upper left", framealpha=0.85, facecolor=LIGHT.paper, edgecolor="none",
                      fontsize=8, handlelength=1.6, ncols=columns, borderaxespad=0.2)  # fmt: skip
    for text in box.get_texts():
        text.set_color(LIGHT.ink)
