"""Curves of training metrics, averaged over a method's runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vapo.evals.statistics import Scores
from vapo.reports.runfiles import Record, number

EXPLAINED = "value/explained_variance"
CURVES = (
    "entropy",
    "completions/mean_length",
    "gae/lambda_mean",
    EXPLAINED,
    "value/residual_explained_variance",
)
"""The metrics shown as curves."""
BIAS = "value/bias_by_position"
MOST_POINTS = 50
DECILES = 10
_LAST_PART = 0.25


def metric_curve(runs: Sequence[Sequence[Record]], key: str) -> dict[str, list[float]] | None:
    """`step` and `mean` of one training metric, averaged over runs and over at most 50 bins of equal width.

    `runs` holds each run's training rows. Each step is averaged over the runs that have it; `step` is the middle of a
    bin. None if no run has the metric.
    """
    rows = [row for run in runs for row in run]
    steps = np.array([number(row.get("step")) for row in rows])
    values = np.array([number(row.get(key)) for row in rows])
    known = np.isfinite(values) & np.isfinite(steps)
    if not known.any():
        return None
    places, of_place = np.unique(steps[known], return_inverse=True)
    means = _mean_by(of_place, values[known])
    width = max(1, -(-len(places) // MOST_POINTS))
    bins = np.arange(len(places)) // width
    return {"step": _mean_by(bins, places).tolist(), "mean": _mean_by(bins, means).tolist()}


def bias_by_position(runs: Sequence[Sequence[Record]]) -> list[float] | None:
    """The mean of V minus the outcome in each tenth of the response, over the last quarter of training.

    None for methods without a critic; nan for a tenth without measurements.
    """
    rows = [row for run in runs for row in last_quarter(run)]
    table = np.array([[number(row.get(f"{BIAS}/{d}")) for d in range(DECILES)] for row in rows])
    if not table.size or np.isnan(table).all():
        return None
    return [
        float(column[~np.isnan(column)].mean()) if (~np.isnan(column)).any() else float("nan") for column in table.T
    ]


def last_quarter(rows: Sequence[Record]) -> list[Record]:
    """The rows of the last quarter of a run's steps."""
    last = max((int(row.get("step", 0)) for row in rows), default=0)
    return [row for row in rows if int(row.get("step", 0)) > (1 - _LAST_PART) * last]


def _mean_by(groups: np.ndarray, values: Scores) -> Scores:
    """The mean of the values in each group 0, 1, …"""
    return np.bincount(groups, weights=values) / np.bincount(groups)
