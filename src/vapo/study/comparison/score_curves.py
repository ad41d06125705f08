"""Curves of held-out scores: their value at one x, their mean over runs, and where they first reach a target.

A run's curve has one point per evaluation and is linear in between, without smoothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from vapo.evals.statistics import Scores
from vapo.study.comparison.bootstrap import LEVEL, draws, resampled_means, run_means

MOST_POINTS = 41
"""The number of points of a mean curve whose runs have different x."""
_ROUNDING = 1e-9  # tolerance, so that a curve that ends exactly at the target reaches it


class RunCurve(NamedTuple):
    """One run's evaluations: `x` (E,), not decreasing and in any unit, and success rates (E, P) per prompt."""

    x: Scores
    rates: Scores

    @property
    def means(self) -> Scores:
        """(E,) the mean score of each evaluation."""
        return run_means(self.rates)


class TargetReached(NamedTuple):
    """The x at which a mean curve first reaches a target, and its 95 % interval.

    `inf` means that the curve does not reach it; `reached` is the share of resamples that do.
    """

    x: float
    low: float
    high: float
    reached: float


def rates_at(curve: RunCurve, at: float) -> Scores:
    """(P,) the success rate of each prompt at x = `at`, linear between evaluations.

    The first and the last evaluation extend the curve as constants: before the first one, pretraining samples do not
    change the policy. A prompt that was not judged in one of the neighbouring evaluations is nan.
    """
    x, rates = _last_of_each(curve)
    if at <= x[0] or at >= x[-1]:
        return rates[0] if at <= x[0] else rates[-1]
    right = int(np.searchsorted(x, at, side="left"))
    if x[right] == at:
        return rates[right]
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return (1 - share) * rates[right - 1] + share * rates[right]


def mean_height(curve: RunCurve, end: float) -> Scores:
    """(P,) the area under each prompt's curve from its first x to `end`, divided by that distance.

    Linear between the evaluations in which the prompt was judged, and constant outside of them; nan for a prompt that
    was never judged. At `end` = first x it is the first success rate.
    """
    x, rates = _last_of_each(curve)
    if end <= x[0]:
        return rates[0]
    grid = np.append(x[x < end], end)
    heights = np.full(rates.shape[1], np.nan)
    for prompt, own in enumerate(rates.T):
        known = ~np.isnan(own)
        if known.any():
            heights[prompt] = np.trapezoid(np.interp(grid, x[known], own[known]), grid) / (end - x[0])
    return heights


def mean_curves(curves: Sequence[RunCurve], *, exact: bool = False) -> tuple[Scores, Scores]:
    """A grid (G,) over the range of x that all runs cover, and each run's mean score on it (R, G).

    The grid consists of the evaluations' x if all runs share them, else of 41 even steps; with `exact`, of every x of
    every run, so that the curves keep all their points. Without a common x the grid is empty.
    """
    points = np.unique(np.concatenate([curve.x for curve in curves]))
    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    grid = points[(points >= start) & (points <= end)]
    if len(grid) and not exact and any(not np.array_equal(curves[0].x, curve.x) for curve in curves):
        grid = np.linspace(start, end, MOST_POINTS)
    means = [(_last_of_each(curve)[0], RunCurve(*_last_of_each(curve)).means) for curve in curves]
    return grid, np.array([np.interp(grid, x, mean) for x, mean in means])


def first_reach(x: Scores, curves: Scores, targets: Scores) -> Scores:
    """(B,) the first x at which each curve (B, G) is at or above its target (B,); inf if it stays below.

    Linear between grid points `x` (G,). A curve that starts at or above the target reaches it at x[0].
    """
    above = curves >= targets[:, None] - _ROUNDING
    at = above.argmax(axis=1)
    rows, before = np.arange(len(curves)), np.maximum(at - 1, 0)
    low, high = curves[rows, before], curves[rows, at]
    rise = np.where(high > low, high - low, 1.0)
    share = np.where(at > 0, np.clip((targets - low) / rise, 0.0, 1.0), 0.0)
    crossing = x[before] + share * (x[at] - x[before])
    return np.where(above.any(axis=1), crossing, np.inf)


def steps_until_target(
    curves: Sequence[RunCurve],
    strata: Sequence[Hashable],
    target_scores: Scores,
    target_strata: Sequence[Hashable],
    *,
    paired: bool,
    resamples: int = 2_000,
    seed: int = 0,
) -> TargetReached:
    """Where the mean curve of some runs first reaches the mean final score of other runs.

    `target_scores` (R', P) are the final success rates of the other runs; `strata` and `target_strata` are the bases
    of both sides. The interval resamples the runs of each side, and the same prompts for both. It is nan with fewer
    than two runs on a side, and all is nan for curves without a common x. With `paired`, run i of both sides has the
    same base and seed, and both are drawn together. Noise makes the first crossing come early for every method; the
    target method's own share below 1 shows by how much.
    """
    x, means = mean_curves(curves, exact=True)
    if not len(x):
        return TargetReached(*[float("nan")] * 4)
    target = np.nanmean(np.nanmean(target_scores, axis=1))
    point = float(first_reach(x, means.mean(axis=0)[None], np.array([target]))[0])
    if len(curves) < 2 or len(target_scores) < 2:
        return TargetReached(point, float("nan"), float("nan"), float("nan"))
    rates = np.array([[rates_at(curve, at) for at in x] for curve in curves])  # (R, G, P)
    num_prompts, found = rates.shape[2], []
    own = draws(strata, num_prompts, resamples=resamples, seed=seed, stream=1)
    theirs = draws(target_strata, num_prompts, resamples=resamples, seed=seed, stream=1 if paired else 2)
    for draw, target_draw in zip(own, theirs, strict=True):
        of_runs = resampled_means(rates.reshape(-1, num_prompts), draw.prompts).reshape(-1, *rates.shape[:2])
        curve = np.einsum("br,brg->bg", draw.runs, of_runs) / len(curves)
        targets = resampled_means(target_scores, target_draw.prompts)  # (B, R')
        found.append(first_reach(x, curve, (target_draw.runs * targets).sum(axis=1) / len(target_scores)))
    places = np.concatenate(found)
    # take quantiles from the sorted places themselves, because numbers and inf cannot be interpolated
    low, high = np.quantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return TargetReached(point, float(low), float(high), float(np.isfinite(places).mean()))


def _last_of_each(curve: RunCurve) -> RunCurve:
    """The curve with each x once; the newest of several evaluations at the same x is kept."""
    keep = np.append(np.diff(curve.x) > 0, True)
    return RunCurve(curve.x[keep], curve.rates[keep])
