"""P-values of paired differences, and Holm's correction for the number of comparisons.

A p-value belongs to the interval of `bootstrap`: the half of the interval on the side of 0 is t(.975, df) standard
errors long, so |mean| in standard errors has Student's t distribution with the same df if the true difference is 0.
It is below .05 where the interval excludes 0. Beyond the interval's ends it relies on the shape of t. Equal differences
have an exact interval, and its p-value.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vapo.study.comparison.bootstrap import Estimate, t_over_normal

_NORMAL = 1.959964  # the 97.5 % quantile
_MANY = 1000  # degrees of freedom from which t is taken for normal
_POINTS = 20_001


def t_tail(t: float, df: float) -> float:
    """P(|T| ≥ t) for Student's T with `df` ≥ 1 degrees of freedom, not necessarily whole.

    With T = √df·tan θ the density is proportional to cos(θ)^(df - 1) on (-π/2, π/2).
    """
    if df > _MANY:
        return math.erfc(t / math.sqrt(2))
    start = math.atan(t / math.sqrt(df))
    parts = []
    for low in (start, 0.0):
        angles = np.linspace(low, math.pi / 2, _POINTS)
        parts.append(float(np.trapezoid(np.clip(np.cos(angles), 0.0, None) ** (df - 1), angles)))
    return parts[0] / parts[1]


def p_value(found: Estimate, df: float) -> float:
    """The two-sided p-value of a mean with its interval; nan without an interval.

    `df` are the degrees of freedom of the interval.
    """
    if math.isnan(found.low) or math.isnan(found.high):
        return math.nan
    half = found.mean - found.low if found.mean > 0 else found.high - found.mean
    if half <= 0:  # every resample is equal
        return 1.0 if found.mean == 0 else 0.0
    df = max(1.0, df)
    return t_tail(abs(found.mean) / half * _NORMAL * t_over_normal(df), df)


def unanimous_p_value(difference: float, num_prompts: int) -> float:
    """The two-sided p-value of a difference that is the same on all prompts: where `unanimous_interval` ends at 0.

    Its end towards 0 is |d| - (1 - (p/2)^(1/n))·(1 + |d|), so p = 2·(1 + |d|)^-n, at most 1.

    >>> unanimous_p_value(-0.5, 2), unanimous_p_value(0.0, 40)
    (0.8888888888888888, 1.0)
    """
    return min(1.0, 2 * (1 + abs(difference)) ** -num_prompts)


def holm(p_values: Sequence[float]) -> list[float]:
    """The adjusted p-values: the k-th smallest of m times m - k + 1, not below the one before it, at most 1.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, most = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, p_values[i] * (len(p_values) - place)))
        adjusted[i] = most
    return adjusted
