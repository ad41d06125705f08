"""`table.md`: the tables and their explanations, for a README or an issue."""

from __future__ import annotations

import re

from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record
from vapo.study.comparison.pace_rows import has_pace, pace_explanations, pace_headings, pace_rows
from vapo.study.comparison.table_rows import (
    Row,
    column_explanations,
    comparison_headline,
    comparison_title,
    equal_samples_headings,
    equal_samples_rows,
    main_headings,
    main_rows,
    runs_left_out,
    runs_resumed,
)


def comparison_markdown(results: Record) -> str:
    """The text of `table.md`."""
    parts = [
        f"# {_safe(comparison_title(results))}",
        _safe(comparison_headline(results)),
        _table(main_headings(results), main_rows(results)),
    ]
    parts += [_list(column_explanations(results))]
    parts += [
        "## At equal samples, and run by run",
        _table(equal_samples_headings(results), equal_samples_rows(results)),
    ]
    if has_pace(results):
        parts += [
            "## At equal time, and along training",
            _table(pace_headings(results), pace_rows(results)),
            _list(pace_explanations(results)),
        ]
    if left_out := runs_left_out(results):
        parts += ["## Left out of the scores", _list(left_out)]
    if resumed := runs_resumed(results):
        parts += ["## Resumed with other settings", _list(resumed)]
    if results["notes"]:
        parts += ["## Notes", _list(results["notes"])]
    return "\n\n".join(parts) + "\n"


def _table(heads: Row, lines: list[Row]) -> str:
    cells = [heads, ["---"] + ["--:"] * (len(heads) - 1), *lines]
    return "\n".join(f"| {' | '.join(_safe(cell) for cell in line)} |" for line in cells)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {_safe(item)}" for item in items)


def _safe(text: str) -> str:
    """Text with Markdown and HTML characters escaped, because labels come from config files and folder names."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*`\[_#])", r"\\\1", text)
