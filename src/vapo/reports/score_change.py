"""How a held-out score changed between two evaluations of one run."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vapo.evals.statistics import Difference, Scores, paired_bootstrap_difference
from vapo.reports.runfiles import Record, number

Direction = Literal["rose", "fell", "not told apart"]
CONFIDENCE = 0.95


def direction(earlier: Record, later: Record, *, choices: int = 1) -> Direction:
    """Whether the score rose or fell, as far as the evaluations can tell.

    Where both evaluations have the same prompts and decoding, the interval of their paired difference excludes 0;
    otherwise their own intervals do not overlap. `choices` is the number of evaluations that `earlier` was chosen from
    as the best; the paired interval is Bonferroni's for so many comparisons.
    """
    found = paired_change(earlier, later, choices=choices)
    if found is None:
        rose = number(later.get("low")) > number(earlier.get("high"))
        fell = number(later.get("high")) < number(earlier.get("low"))
    else:
        rose, fell = found.low > 0, found.high < 0
    return "rose" if rose else "fell" if fell else "not told apart"


def paired_change(earlier: Record, later: Record, *, choices: int = 1) -> Difference | None:
    """The mean of `later - earlier` over the prompts, and its interval; None unless both have the same prompts."""
    before, after = _rates(earlier), _rates(later)
    if before is None or after is None or before.shape != after.shape or earlier.get("set") != later.get("set"):
        return None
    return paired_bootstrap_difference(after, before, 1 - (1 - CONFIDENCE) / choices)


def _rates(evaluation: Record) -> Scores | None:
    """(P,) the share of right ones among each prompt's valid samples; None for a version that did not record it."""
    right, valid = (np.asarray(evaluation.get(name) or [], dtype=np.float64) for name in ("right", "valid"))
    if not len(right) or right.shape != valid.shape or evaluation.get("set") is None:
        return None
    return np.where(valid > 0, right / np.maximum(valid, 1), np.nan)
