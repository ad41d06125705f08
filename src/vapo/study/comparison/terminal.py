"""The main table for a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record
from vapo.study.comparison.table_rows import comparison_title, main_headings, main_rows

_NEVER = ("paper ",)
_WIDE_ONLY = ("at equal samples", "steps to", "samples", "minutes")
_WIDE = 130


def terminal_table(results: Record, width: int = _WIDE) -> Table:
    """The main table as a rich table, without the paper's column.

    Below a width of 130 characters it has the main columns only; `table.md` has all of them.
    """
    heads = main_headings(results)
    left_out = _NEVER if width >= _WIDE else _NEVER + _WIDE_ONLY
    kept = [i for i, head in enumerate(heads) if not head.startswith(left_out)]
    table = Table(
        title=f"{escape(one_line(comparison_title(results)))}: {results['prompts']} held-out prompts, 95 % intervals",
        title_justify="left",
        title_style="bold",
        border_style="dim",
    )
    for i in kept:
        # methods may differ in the last letters of their names only
        table.add_column(escape(heads[i]), justify="right" if i else "left", overflow="fold")
    for row in main_rows(results):
        table.add_row(*(escape(one_line(row[i])) for i in kept))
    return table
