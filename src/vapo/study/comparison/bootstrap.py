"""Intervals for several runs scored on the same prompts, over the choice of runs and of prompts.

A run's score depends on its seed and base, and on the prompts that are held out. So one resample
draws runs with replacement *and* prompts with replacement. Prompts are crossed with runs: every run meets
the same ones, and a resample gives every run the same resampled prompts.

    scores: (R, P) runs × prompts, success rates in [0, 1] or their differences, nan where not judged

With several bases, runs are resampled within each base (stratified): which bases are studied is a choice,
not drawn. A base with a single run has nothing to resample; as soon as there is one, runs are drawn from all
bases together, which counts the difference between bases as noise and so errs on the wide side.

Of n runs of a stratum n - 1 are drawn, each then counting n/(n - 1): with n draws the variance between runs
would come out too small by (n - 1)/n, which matters when n is 3. The spread itself is known badly from few
runs, so a percentile interval is still too short: each end is moved out by t/1.96, Student's t at the degrees
of freedom that runs and prompts have together (Satterthwaite). `benchmarks/intervals.py` measures how often the
intervals hold the truth: 92 to 96 % where luck of the seed dominates, 99 to 100 % where prompts do.

Sources: rows and columns of a crossed table: Owen 2007, "The pigeonhole bootstrap", Annals of Applied
Statistics 1(2), doi:10.1214/07-AOAS122; n - 1 draws: Rao & Wu 1988, "Resampling inference with complex survey
data", JASA 83, with one draw fewer than units; t ends: Hesterberg 2015, "What teachers should know about the
bootstrap", The American Statistician 69(4); degrees of freedom: Satterthwaite 1946, Biometrics Bulletin 2.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vapo.evals.statistics import Interval, Scores

LEVEL = 0.95
RESAMPLES = 10_000
_BLOCK = 1_000  # resamples worked on at a time
# Student's t, 97.5 %: quantiles at 1/degrees of freedom, between which it is nearly straight
_T_PLACES = (0.0, 1 / 60, 1 / 30, 1 / 20, 1 / 15, 1 / 10, 1 / 8, 1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0)
_T_QUANTILES = (1.960, 2.000, 2.042, 2.086, 2.131, 2.228, 2.306, 2.447, 2.571, 2.776, 3.182, 4.303, 12.706)
NO_INTERVAL = Interval(float("nan"), float("nan"))


class Estimate(NamedTuple):
    """A mean over runs, its 95 % interval (nan with fewer than two runs), and the number of runs."""

    mean: float
    low: float
    high: float
    num_runs: int


class Draw(NamedTuple):
    """Resamples: how often each run (B, R) and each prompt (B, P) was drawn."""

    runs: Scores
    prompts: Scores


def run_means(scores: Scores) -> Scores:
    """(R,) each run's mean over the prompts it was judged on; nan where it was judged on none."""
    judged = ~np.isnan(scores)
    counts = judged.sum(axis=1)
    return np.where(counts > 0, np.where(judged, scores, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def estimate(scores: Scores, strata: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over runs of (R, P) scores, each run counting the same, with its hierarchical interval.

    `strata` holds each run's base. The same seed gives the same interval; prompts are drawn alike for every
    method, however many runs it has. Runs without any judged prompt are left out.

    Raises ValueError if `strata` does not name a base for each run.
    """
    if scores.ndim != 2 or len(strata) != len(scores):
        raise ValueError(f"Scores are runs × prompts with one stratum a run, got {scores.shape} and {len(strata)}.")
    usable = ~np.isnan(run_means(scores))
    strata = [stratum for stratum, use in zip(strata, usable, strict=True) if use]
    scores = scores[usable]
    mean = float(run_means(scores).mean()) if len(scores) else float("nan")
    if len(scores) < 2:
        return Estimate(mean, *NO_INTERVAL, len(scores))
    means = []
    for draw in draws(strata, scores.shape[1], resamples=resamples, seed=seed):
        of_runs = resampled_means(scores, draw.prompts)  # (B, R)
        weights = np.where(np.isnan(of_runs), 0.0, draw.runs)  # of no resampled prompt there may be a verdict
        total = np.maximum(weights.sum(axis=1), 1.0)
        means.append((weights * np.nan_to_num(of_runs)).sum(axis=1) / total)
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = t_over_normal(degrees_of_freedom(scores, strata))
    return Estimate(mean, float(mean - wider * (mean - low)), float(mean + wider * (high - mean)), len(scores))


def degrees_of_freedom(scores: Scores, strata: Sequence[Hashable]) -> float:
    """How well the variance of the mean of (R, P) scores is known: (Σ v)² / Σ (v²/df), over its parts.

    The parts are the runs of each stratum and the prompts. Many prompts know their part well; a few runs do
    not. Infinite where nothing varies.
    """
    of_prompts = run_means(scores.T)
    of_prompts = of_prompts[~np.isnan(of_prompts)]
    parts = _variances_of_runs(run_means(scores), strata)
    if len(of_prompts) > 1:
        parts.append((float(of_prompts.var(ddof=1)) / len(of_prompts), len(of_prompts) - 1))
    known = sum(variance**2 / df for variance, df in parts)
    return sum(variance for variance, _ in parts) ** 2 / known if known > 0 else float("inf")


def _variances_of_runs(means: Scores, strata: Sequence[Hashable]) -> list[tuple[float, int]]:
    """What the runs of each stratum add to the variance of the mean of all, and its degrees of freedom."""
    groups = _strata(strata)
    return [(len(g) * float(means[g].var(ddof=1)) / len(means) ** 2, len(g) - 1) for g in groups]


def t_over_normal(df: float) -> float:
    """Student's 97.5 % quantile at `df` degrees of freedom, at least 1, over the normal one."""
    place = 1 / max(1.0, df)
    return float(np.interp(place, _T_PLACES, _T_QUANTILES)) / _T_QUANTILES[0]


def paired_estimate(
    scores: Scores, reference: Scores, strata: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of `scores - reference`, both (R, P), where row i of either is a run of the same base and seed.

    What a seed or a prompt does to both sides cancels; pairs and prompts are resampled together. A prompt that
    either run of a pair was not judged on is left out of that pair.
    """
    if scores.shape != reference.shape:
        raise ValueError(f"Pairs need equal runs and prompts, got {scores.shape} and {reference.shape}.")
    return estimate(scores - reference, strata, resamples=resamples, seed=seed)


def band(curves: Scores, strata: Sequence[Hashable], *, resamples: int = 2_000, seed: int = 0) -> tuple[Scores, Scores]:
    """The ends (G,), (G,) of a pointwise 95 % band for the mean of (R, G) curves, resampling runs only.

    nan with fewer than two runs.
    """
    if len(curves) < 2:
        nothing = np.full(curves.shape[1], np.nan)
        return nothing, nothing
    means = [runs @ curves / len(curves) for runs in _run_draws(strata, resamples, seed, stream=1)]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    centre = curves.mean(axis=0)
    # a band has one width per place, and the fewest degrees of freedom that a stratum has
    wider = t_over_normal(min(len(group) for group in _strata(strata)) - 1)
    return centre - wider * (centre - low), centre + wider * (high - centre)


def draws(
    strata: Sequence[Hashable], num_prompts: int, *, resamples: int = RESAMPLES, seed: int = 0, stream: int = 1
) -> Iterator[Draw]:
    """Resamples of runs (within strata) and prompts, in blocks; see the module's docstring.

    The prompts drawn depend on the seed alone, so that all methods meet the same ones; `stream` makes the
    runs drawn independent of another method's.
    """
    for runs, prompts in zip(
        _run_draws(strata, resamples, seed, stream), _prompt_draws(num_prompts, resamples, seed), strict=True
    ):
        yield Draw(runs, prompts)


def resampled_means(scores: Scores, prompts: Scores) -> Scores:
    """(B, N) the mean of each row of scores (N, P) over prompts resampled as counted in (B, P); nan where a
    resample has no prompt that the row was judged on."""
    judged = ~np.isnan(scores)
    sums = (np.where(judged, scores, 0.0) @ prompts.T).T
    if judged.all():
        return sums / scores.shape[1]
    counts = (judged.astype(np.float64) @ prompts.T).T
    return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def _run_draws(strata: Sequence[Hashable], resamples: int, seed: int, stream: int) -> Iterator[Scores]:
    groups, rng = _strata(strata), np.random.default_rng([seed, stream])
    for rows in _blocks(resamples):
        runs = np.zeros((rows, len(strata)))
        for group in groups:
            drawn = len(group) - 1  # unbiased variance, see above; scaled so that each stratum keeps its weight
            runs[:, group] = _counts(rng, rows, len(group), drawn) * len(group) / drawn
        yield runs


@lru_cache(maxsize=2)  # a comparison asks for the same ones a hundred times
def _prompt_draws(num_prompts: int, resamples: int, seed: int) -> tuple[Scores, ...]:
    rng = np.random.default_rng([seed, 0])
    return tuple(_counts(rng, rows, num_prompts) for rows in _blocks(resamples))


def _blocks(resamples: int) -> list[int]:
    return [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]


def _strata(strata: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The rows of each stratum; one group of all if some stratum has only one row."""
    members: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(row)
    if any(len(rows) < 2 for rows in members.values()):
        return [np.arange(len(strata))]
    return [np.array(rows) for rows in members.values()]


def _counts(rng: np.random.Generator, rows: int, size: int, drawn: int | None = None) -> Scores:
    """(rows, size) how often each of `size` things comes up in `drawn` draws (default: `size`) with replacement."""
    draws = rng.integers(size, size=(rows, size if drawn is None else drawn)) + size * np.arange(rows)[:, None]
    return np.bincount(draws.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
