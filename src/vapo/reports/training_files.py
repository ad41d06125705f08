"""A critic along training: table, figure and page, made from the content of `training.json` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.markup import escape
from rich.table import Table

from vapo.reports.critic_files import replace_json, stopping_where_refused
from vapo.reports.critic_tables import figure_cell
from vapo.reports.formatting import figure, one_line, percent
from vapo.reports.page_assets import asset, page_templates, palette_css
from vapo.reports.palette import LIGHT
from vapo.reports.runfiles import Record, number
from vapo.reports.style import as_png, as_svg, frame, themed

TRAINING, PICTURE, PAGE = "training.json", "training.png", "training.html"
COLUMNS = {
    "ceiling": "ceiling",
    "explained_variance": "critic explains",
    "explained_share": "share of the ceiling",
    "within_group_auc": "AUC in groups",
    "best_variance_ratio": "advantages, best",
    "variance_ratio": "advantages, critic",
}
"""The figures of the table, all over all positions, with their headings."""
_AS_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
MOST_TICKS = 12
"""So many checkpoints have a tick each."""
_WIDTH, _HEIGHT = 10.0, 4.3


def write_training(course: Record, folder: Path) -> None:
    """Write the three files; raises StoppedError on a disk that refuses, for the judgements are kept."""
    with stopping_where_refused(folder, kept="judgements"):
        replace_json(folder / TRAINING, course)
        as_png(lambda: training_figure(course), folder / PICTURE)
        (folder / PAGE).write_text(training_html(course), encoding="utf-8", errors="replace")


def training_title(course: Record) -> str:
    """What was judged, in one line."""
    return f"The critic of {course['name']} along training"


def training_subtitle(course: Record) -> str:
    """How it was measured, in one line."""
    method = [str(course["method"])] if course.get("method") else []
    return " · ".join(
        [
            f"task {course['task']}",
            *method,
            f"{len(course['checkpoints'])} checkpoints",
            f"{course['prompts']} held-out prompts × {course['responses']} responses, {course['continuations']} "
            "continuations of each prefix",
        ]
    )


def training_headings(course: Record) -> list[str]:
    """The headings of the table."""
    return ["step", "accuracy", *(COLUMNS[name] for name in _names(course))]


def training_rows(course: Record, *, intervals: bool = True) -> list[list[str]]:
    """One row for each checkpoint."""
    unknown = {"value": None, "low": None, "high": None}
    return [
        [
            figure(row["step"]),
            percent(number(row["accuracy"])),
            *(figure_cell(name, row["figures"].get(name, unknown), intervals) for name in _names(course)),
        ]
        for row in course["checkpoints"]
    ]


def training_table(course: Record) -> Table:
    """The table for a terminal; print it with rich."""
    title = escape(f"{training_title(course)}\n{training_subtitle(course)}")
    table = Table(*training_headings(course), title=title, title_justify="left", title_style="bold", border_style="dim")
    for row in training_rows(course, intervals=False):
        table.add_row(*row)
    return table


def training_html(course: Record) -> str:
    """The page: no network, no script, light and dark."""
    return (
        page_templates()
        .get_template("training.html.j2")
        .render(
            course=course,
            title=training_title(course),
            subtitle=training_subtitle(course),
            headings=training_headings(course),
            rows=training_rows(course),
            picture=Markup(themed(as_svg(lambda: training_figure(course, heading=False)))),  # noqa: S704  shapes
            css=Markup(palette_css() + asset("report.css")),  # noqa: S704  our own file
        )
    )


def training_figure(course: Record, *, heading: bool = True) -> Figure:
    """The ceiling and what the critic explains of it over the steps; beside them accuracy and the critic's share."""
    above = 1.05 if heading else 0.4
    height = _HEIGHT + above - 0.4
    drawn = Figure(figsize=(_WIDTH, height), dpi=120, facecolor=LIGHT.paper)
    grid = drawn.add_gridspec(1, 3, left=0.06, right=0.985, top=1 - above / height, bottom=0.55 / height, wspace=0.28)
    if heading:
        drawn.text(0.022, 1 - 0.16 / height, one_line(training_title(course)), va="top", fontsize=14, weight="bold",
                   color=LIGHT.ink)  # fmt: skip
        drawn.text(0.022, 1 - 0.46 / height, one_line(training_subtitle(course)), va="top", fontsize=8.5,
                   color=LIGHT.quiet)  # fmt: skip
    steps = [number(row["step"]) for row in course["checkpoints"]]
    variance = drawn.add_subplot(grid[0, :2])
    frame(variance, "variance that can be explained", whole=True)
    _with_band(variance, course, steps, "ceiling", LIGHT.third, "ceiling: any critic")
    at_prompt = [number((row["prompt_ceiling"] or {}).get("value")) for row in course["checkpoints"]]
    if not np.isnan(at_prompt).all():
        variance.plot(steps, at_prompt, color=LIGHT.third, linewidth=1.2, linestyle=(0, (3, 2)),
                      label="the prompt's difficulty alone")  # fmt: skip
    _with_band(variance, course, steps, "explained_variance", LIGHT.first, "this critic")
    variance.axhline(0, color=LIGHT.quiet, linewidth=0.8, alpha=0.6)
    low, high = variance.get_ylim()
    variance.set_ylim(max(-1.0, low), min(1.1, high + 0.25 * (high - low)))
    shares = drawn.add_subplot(grid[0, 2])
    frame(shares, "accuracy and share", whole=True)
    shares.plot(steps, [number(row["accuracy"]) for row in course["checkpoints"]], "o-", color=LIGHT.second,
                linewidth=1.8, markersize=4, label="accuracy")  # fmt: skip
    if "explained_share" in _names(course):
        share = [number(row["figures"].get("explained_share", {}).get("value")) for row in course["checkpoints"]]
        shares.plot(steps, share, "o-", color=LIGHT.fourth, linewidth=1.8, markersize=4, label="critic's share of the "
                    "ceiling")  # fmt: skip
    shares.set_ylim(-0.1, 1.35)
    shares.set_yticks([0, 0.25, 0.5, 0.75, 1])
    for axes in (variance, shares):
        axes.yaxis.set_major_formatter(_AS_PERCENT)
        if len(steps) <= MOST_TICKS:
            axes.set_xticks(steps)
        axes.set_xlabel("step", fontsize=8.5, color=LIGHT.quiet, labelpad=2)
        box = axes.legend(loc="upper left", frameon=False, fontsize=8, handlelength=1.6, borderaxespad=0.2)
        for text in box.get_texts():
            text.set_color(LIGHT.ink)
    return drawn


def _with_band(axes: Axes, course: Record, steps: list[float], name: str, hue: str, label: str) -> None:
    """A figure over the steps with its 95 % interval; nothing where no checkpoint has it."""
    if name not in _names(course):
        return
    entries = [row["figures"].get(name, {}) for row in course["checkpoints"]]
    value, low, high = (np.array([number(e.get(end)) for e in entries]) for end in ("value", "low", "high"))
    axes.plot(steps, value, "o-", color=hue, linewidth=1.8, markersize=4, label=label)
    if not np.isnan(low).all():
        axes.fill_between(steps, low, high, color=hue, alpha=0.15, linewidth=0)


def _names(course: Record) -> list[str]:
    return [name for name in COLUMNS if any(name in row["figures"] for row in course["checkpoints"])]
