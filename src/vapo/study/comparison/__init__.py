"""Compare finished runs: tables, curves with bands, paired differences, and a page with explanations.

    results = compare_runs(["runs/vapo-0", "runs/dapo-0", ...], "comparison")

A comparison reads files only. All of its numbers are in `results.json`; tables, figures and page are made from it.
"""

from vapo.study.comparison.comparison_files import compare_runs, read_results, with_reference, write_comparison
from vapo.study.comparison.comparison_page import comparison_html
from vapo.study.comparison.table_rows import runs_left_out, runs_resumed
from vapo.study.comparison.terminal import terminal_table

__all__ = [
    "compare_runs",
    "comparison_html",
    "read_results",
    "runs_left_out",
    "runs_resumed",
    "terminal_table",
    "with_reference",
    "write_comparison",
]
