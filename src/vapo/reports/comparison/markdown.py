"""`table.md`: the tables and their explanation for a README or an issue."""

from __future__ import annotations

import re

from vapo.reports.comparison.rows import (
    Row,
    headings,
    headline,
    left_out,
    reading_headings,
    reading_rows,
    rows,
    sentences,
    title,
)
from vapo.reports.runfiles import Record
from vapo.reports.words import one_line


def markdown(results: Record) -> str:
    """The text of `table.md`."""
    parts = [f"# {_safe(title(results))}", _safe(headline(results)), _table(headings(results), rows(results))]
    parts += [_list(sentences(results))]
    parts += ["## At equal samples, and run by run", _table(reading_headings(results), reading_rows(results))]
    if absent := left_out(results):
        parts += ["## Left out of the scores", _list(absent)]
    if results["notes"]:
        parts += ["## Notes", _list(results["notes"])]
    return "\n\n".join(parts) + "\n"


def _table(heads: Row, lines: list[Row]) -> str:
    cells = [heads, ["---"] + ["--:"] * (len(heads) - 1), *lines]
    return "\n".join(f"| {' | '.join(_safe(cell) for cell in line)} |" for line in cells)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {_safe(item)}" for item in items)


def _safe(text: str) -> str:
    """Text that markdown shows as it is: labels come from config files and folder names."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*`\[_#])", r"\\\1", text)
