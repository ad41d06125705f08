"""The judgement of a critic as rows of words, for the terminal and the page; `results.json` is all they read."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from vapo.reports.formatting import figure, gap, interval, percent
from vapo.reports.runfiles import Record, number

BY_POSITION = {
    "ceiling": "ceiling",
    "explained_variance": "critic explains",
    "bias": "bias",
    "rmse": "RMSE",
    "spearman": "rank correlation",
    "within_group_auc": "AUC in groups",
    "best_variance_ratio": "advantages, best",
    "variance_ratio": "advantages, critic",
}
"""The rows of the table by position, in order, with their names."""
AS_SHARE = ("ceiling", "explained_variance", "explained_share", "between_share", "group_explained_variance")
SIGNED = ("bias",)
MEANING = {
    "ceiling": "The share of the outcomes' variance that any critic could explain from this state on.",
    "critic explains": "The share that this critic explains: the ceiling less the variance of its error.",
    "bias": "Mean of the critic's value less the Monte-Carlo value; above 0 it expects too much.",
    "RMSE": "Typical distance of the critic to the true value, without the sampling noise of the continuations.",
    "rank correlation": "Spearman's, between critic and Monte-Carlo value; the noise of the latter lowers it.",
    "AUC in groups": "How often a right response has a higher value than a wrong one to its prompt; 0.5 is chance.",
    "advantages, best": "Var(R - V) / Var(R - mean of the group's other responses) for a critic that is exact.",
    "advantages, critic": "The same for this critic; above 1 the group's mean is the better baseline.",
}
"""One sentence for each row."""


def judgement_title(results: Record) -> str:
    """What was judged, in one line."""
    name = results.get("name") or "policy"
    return f"The critic of {name}" if results.get("critic") else f"What a critic could explain for {name}"


def judgement_subtitle(results: Record) -> str:
    """How it was measured, in one line."""
    parts = [f"task {results['task']}"]
    if results.get("method"):
        parts.append(str(results["method"]))
    parts.append(
        f"{results['prompts']} held-out prompts × {results['responses']} responses, "
        f"{results['continuations']} continuations of each prefix"
    )
    parts.append(f"accuracy {percent(number(results.get('accuracy')))}")
    return " · ".join(parts)


def position_name(fraction: float) -> str:
    """A position as a table names it.

    >>> position_name(0.0), position_name(0.25)
    ('prompt', '25 %')
    """
    return "prompt" if fraction == 0 else f"{100 * fraction:g} %"


def number_headings(results: Record) -> list[str]:
    """The headings of the table with one row for each number and one column for each position, the last for all."""
    return ["position", *map(position_name, results["fractions"]), "all"]


def number_rows(results: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each number's name, and its (value, interval) at every position and at all: few columns fit terminal and page."""
    return [
        (
            BY_POSITION[name],
            [_parts(name, entry) for entry in (*results["by_position"][name], results["figures"][name])],
        )
        for name in _columns(results)
    ]


def baseline_rows(results: Record) -> list[list[str]]:
    """What the prompts and groups alone explain, and the critic's calibration."""
    figures = results["figures"]
    rows = [
        [
            "variance between prompts, as training reports it",
            figure_cell("between_share", figures["between_share"], True),
        ],
        [
            f"explained by the mean of the other {results['group_size'] - 1} responses",
            figure_cell("group_explained_variance", figures["group_explained_variance"], True),
        ],
    ]
    if "calibration_error" in figures:
        rows.append(
            ["calibration error over bins", figure_cell("calibration_error", figures["calibration_error"], True)]
        )
    rows.append(["mean length", figure(number(results.get("mean_length")))])
    rows.append(["cut off at the limit", percent(number(results.get("clipped_ratio")))])
    rows.append(["verifier could not tell", percent(number(results.get("invalid_ratio")))])
    return rows


def bin_rows(results: Record) -> list[list[str]]:
    """The critic's calibration: its value and the Monte-Carlo value of states in bins."""
    return [
        [str(b["states"]), figure(number(b["value"])), figure(number(b["monte_carlo"])),
         gap(number(b["value"]) - number(b["monte_carlo"]))]
        for b in results.get("bins") or []
    ]  # fmt: skip


BIN_HEADINGS = ["states", "critic's value", "Monte-Carlo value", "gap"]


def judgement_tables(results: Record) -> list[Table]:
    """The tables for a terminal; print them with rich."""
    headings = number_headings(results)
    title = escape(f"{judgement_title(results)}\n{judgement_subtitle(results)}")
    by_number = Table(title=title, title_justify="left", title_style="bold", border_style="dim")
    by_number.add_column(headings[0])
    for heading in headings[1:]:
        by_number.add_column(heading, justify="right", style="bold" if heading == "all" else "")
    for name, cells in number_rows(results):
        by_number.add_row(name, *(value for value, _ in cells))
    names = _columns(results)
    beside = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in names[:2]:
        beside.add_row(f"{BY_POSITION[name]}, all positions", figure_cell(name, results["figures"][name], True))
    for row in baseline_rows(results):
        beside.add_row(*row)
    tables = [by_number, beside]
    if bins := bin_rows(results):
        calibration = Table(*BIN_HEADINGS, title="calibration", title_justify="left", border_style="dim")
        for row in bins:
            calibration.add_row(*row)
        tables.append(calibration)
    return tables


def _columns(results: Record) -> list[str]:
    return [name for name in BY_POSITION if name in results["by_position"]]


def figure_cell(name: str, entry: Record, intervals: bool) -> str:
    """A figure by its name, as a table shows it, with its interval where it is wanted and known."""
    value, ends = _parts(name, entry)
    return f"{value} {ends}" if intervals and ends else value


def _parts(name: str, entry: Record) -> tuple[str, str]:
    """A number and its interval; the latter is empty where there is none."""
    value = number(entry["value"])
    text = percent(value) if name in AS_SHARE else gap(value) if name in SIGNED else figure(value)
    return text, "" if math.isnan(value) else _interval(name, entry)


def _interval(name: str, entry: Record) -> str:
    low, high = number(entry["low"]), number(entry["high"])
    if name in AS_SHARE and low == low and high == high:
        return f"[{100 * low:.0f}, {100 * high:.0f}]"
    return interval(low, high)
