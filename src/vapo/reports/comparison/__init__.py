"""Finished runs side by side: one table, curves with bands, paired differences, and a page that explains itself.

    results = compare(["runs/vapo-0", "runs/dapo-0", ...], "comparison")

It reads files only. Everything it says is in `results.json`, from which table, figures and page are made.
"""

from vapo.reports.comparison.compare import compare, read_results, write
from vapo.reports.comparison.page import page
from vapo.reports.comparison.rows import left_out
from vapo.reports.comparison.terminal import terminal_table

__all__ = ["compare", "left_out", "page", "read_results", "terminal_table", "write"]
