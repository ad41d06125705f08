"""The third table of a comparison: scores at equal time, along training, and the runs that end low.

It needs a `results.json` that records seconds at each evaluation; those of earlier versions have no third table.
"""

from __future__ import annotations

import math

from vapo.reports.formatting import NOTHING, figure
from vapo.reports.runfiles import Record, number
from vapo.study.comparison.dynamics import EXPLAINED
from vapo.study.comparison.readings import BELOW_START, FALL
from vapo.study.comparison.table_rows import Row, difference_text, estimate_text, minutes


def has_pace(results: Record) -> bool:
    """Whether the results have the entries of the third table."""
    return results["equal"].get("seconds") is not None


def pace_headings(results: Record) -> Row:
    """The column headings of the third table."""
    to = f"difference to {results['reference']}"
    return [
        "method",
        f"at {minutes(results['equal']['seconds'])} minutes, pretraining counted",
        to,
        *[f"{to} when the pair's shorter run ends"] * _has_pair_times(results),
        f"mean of the curve to {results['equal']['area_gradient_steps']:,} gradient steps",
        to,
        "ended low",
        "explained variance",
    ]


def pace_rows(results: Record) -> list[Row]:
    """The third table: one row per method."""
    table, with_pairs = [], _has_pair_times(results)
    for method in results["methods"]:
        cells = [method["method"]]
        cells += [estimate_text(method["equal_seconds"]), difference_text(method, "equal_seconds")]
        if with_pairs:
            cells += [difference_text(method, "pair_seconds")]
        cells += [estimate_text(method["area"]), difference_text(method, "area")]
        runs = method["final"]["n"]
        low = f"{method['ended_low']} of {runs}" if runs else NOTHING
        table.append([*cells, low, _explained(method)])
    return table


def pace_explanations(results: Record) -> list[str]:
    """One explanation for each column of the third table."""
    equal, processors = results["equal"], results["processors"]
    return [
        f"At equal time: the score after {minutes(equal['seconds'])} minutes, the most that every run took, from each "
        "run's held-out curve, linear between evaluations. Seconds of value pretraining count, including those of a "
        "shared critic; evaluations do not. Seconds depend on the machine and on what else ran on its cores."
        + (
            f" These runs were made on {len(processors)} processors ({'; '.join(processors)}), so this column compares "
            "the machines, too."
            if len(processors) > 1
            else ""
        ),
        *[
            "When the pair's shorter run ends: the difference after the seconds that the shorter of the two runs took, "
            "value pretraining counted; the longer one may still be learning, and other methods do not matter."
        ]
        * _has_pair_times(results),
        "Mean of the curve: the area under each run's held-out curve over gradient steps, divided by their number, up "
        f"to {equal['area_gradient_steps']:,}, the most that every run took. Methods that learn early have a high one.",
        f"Ended low: runs whose final score is more than {FALL} below the median of their method's runs, or more "
        f"than {BELOW_START} below their own first evaluation.",
        "Explained variance: of the outcomes by the critic's values on the training batches, mean over all steps and "
        "runs; in brackets over the last quarter of the steps. Empty without a critic.",
    ]


def _has_pair_times(results: Record) -> bool:
    """Whether each pair has a time of its own; a `results.json` of an earlier version has none."""
    gaps = [method["difference"] for method in results["methods"] if method["difference"] is not None]
    return bool(gaps) and all("pair_seconds" in gap for gap in gaps)


def _explained(method: Record) -> str:
    curve = method["dynamics"].get(EXPLAINED)
    if not curve:
        return NOTHING
    points = [(step, number(mean)) for step, mean in zip(curve["step"], curve["mean"], strict=True)]
    known = [(step, mean) for step, mean in points if not math.isnan(mean)]
    late = [mean for step, mean in known if step > 0.75 * points[-1][0]]
    if not late:
        return NOTHING
    return f"{figure(sum(mean for _, mean in known) / len(known))} ({figure(sum(late) / len(late))})"
