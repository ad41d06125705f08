"""Bootstrap intervals for several runs scored on the same prompts, over runs and prompts.

A run's score depends on its seed, its base and the held-out prompts. So each resample draws runs with
replacement *and* prompts with replacement. Prompts are crossed with runs: all runs have the same prompts, and a
resample gives every run the same resampled prompts.

    scores: (R, P) runs × prompts, success rates in [0, 1] or their differences, nan where not judged

With several bases, runs are resampled within each base (stratified), because the bases are chosen and not drawn
at random. A base with a single run cannot be resampled. If there is one, runs are drawn from all bases together,
which counts the difference between bases as noise and makes the interval wider.

From the n runs of a stratum, n - 1 are drawn, each with weight n/(n - 1): n draws would underestimate the variance
between runs by the factor (n - 1)/n, which matters when n is 3. A few runs estimate this variance poorly, so a
percentile interval is still too short. Each end is therefore moved out by t/1.96, with Student's t at the combined
degrees of freedom of runs and prompts (Satterthwaite). `benchmarks/intervals.py` measures the coverage: 92 to 96 %
where the variance between seeds dominates, 99 to 100 % where that between prompts does.

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
_BLOCK = 1_000  # resamples per block
# Student's t, 97.5 % quantiles at 1/degrees of freedom; they are nearly linear in between
_T_PLACES = (0.0, 1 / 60, 1 / 30, 1 / 20, 1 / 15, 1 / 10, 1 / 8, 1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 1.0)
_T_QUANTILES = (1.960, 2.000, 2.042, 2.086, 2.131, 2.228, 2.306, 2.447, 2.571, 2.776, 3.182, 4.303, 12.706)
NO_INTERVAL = Interval(float("nan"), float("nan"))


class Estimate(NamedTuple):
    """The mean over runs, its 95 % interval (nan with fewer than two runs), and the number of runs."""

    mean: float
    low: float
    high: float
    num_runs: int


class Draw(NamedTuple):
    """A block of resamples: how often each run (B, R) and each prompt (B, P) was drawn."""

    runs: Scores
    prompts: Scores


def run_means(scores: Scores) -> Scores:
    """(R,) the mean of each run's (R, P) scores over its judged prompts; nan for a run without any."""
    judged = ~np.isnan(scores)
    counts = judged.sum(axis=1)
    return np.where(counts > 0, np.where(judged, scores, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def estimate(scores: Scores, strata: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over runs of (R, P) scores, with equal weight per run, and its hierarchical interval.

    `strata` holds each run's base. The same seed gives the same interval, and the same resampled prompts for every
    method. Runs without any judged prompt are left out.

    Raises ValueError if `strata` does not have one base for each run.
    """
    if scores.ndim != 2 or len(strata) != len(scores):
        raise ValueError(
            f"Scores need shape (runs, prompts) and one stratum per run, got {scores.shape} and {len(strata)}."
        )
    usable = ~np.isnan(run_means(scores))
    strata = [stratum for stratum, use in zip(strata, usable, strict=True) if use]
    scores = scores[usable]
    mean = float(run_means(scores).mean()) if len(scores) else float("nan")
    if len(scores) < 2:
        return Estimate(mean, *NO_INTERVAL, len(scores))
    means = []
    for draw in draws(strata, scores.shape[1], resamples=resamples, seed=seed):
        of_runs = resampled_means(scores, draw.prompts)  # (B, R)
        weights = np.where(np.isnan(of_runs), 0.0, draw.runs)  # a run may lack verdicts for all resampled prompts
        total = np.maximum(weights.sum(axis=1), 1.0)
        means.append((weights * np.nan_to_num(of_runs)).sum(axis=1) / total)
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = t_over_normal(degrees_of_freedom(scores, strata))
    return Estimate(mean, float(mean - wider * (mean - low)), float(mean + wider * (high - mean)), len(scores))


def degrees_of_freedom(scores: Scores, strata: Sequence[Hashable]) -> float:
    """The degrees of freedom of the variance of the mean of (R, P) scores: (Σ v)² / Σ (v²/df) over its parts.

    The parts are the runs of each stratum and the prompts. Infinite if nothing varies.
    """
    of_prompts = run_means(scores.T)
    of_prompts = of_prompts[~np.isnan(of_prompts)]
    parts = _variances_of_runs(run_means(scores), strata)
    if len(of_prompts) > 1:
        parts.append((float(of_prompts.var(ddof=1)) / len(of_prompts), len(of_prompts) - 1))
    known = sum(variance**2 / df for variance, df in parts)
    return sum(variance for variance, _ in parts) ** 2 / known if known > 0 else float("inf")


def _variances_of_runs(means: Scores, strata: Sequence[Hashable]) -> list[tuple[float, int]]:
    """(variance of the overall mean, degrees of freedom) contributed by the runs of each stratum."""
    groups = _strata(strata)
    return [(len(g) * float(means[g].var(ddof=1)) / len(means) ** 2, len(g) - 1) for g in groups]


def t_over_normal(df: float) -> float:
    """The ratio of Student's 97.5 % quantile at max(1, `df`) degrees of freedom to the normal one."""
    place = 1 / max(1.0, df)
    return float(np.interp(place, _T_PLACES, _T_QUANTILES)) / _T_QUANTILES[0]


def paired_estimate(
    scores: Scores, reference: Scores, strata: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of `scores - reference`, both (R, P), where row i of each is a run with the same base and seed.

    Effects of a seed or prompt that both sides share cancel. Pairs and prompts are resampled together. A pair leaves
    out the prompts on which either run was not judged. Raises ValueError for different shapes.
    """
    if scores.shape != reference.shape:
        raise ValueError(f"Pairs need equal numbers of runs and prompts, got {scores.shape} and {reference.shape}.")
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
    # all x use the degrees of freedom of the smallest stratum
    wider = t_over_normal(min(len(group) for group in _strata(strata)) - 1)
    return centre - wider * (centre - low), centre + wider * (high - centre)


def draws(
    strata: Sequence[Hashable], num_prompts: int, *, resamples: int = RESAMPLES, seed: int = 0, stream: int = 1
) -> Iterator[Draw]:
    """Resamples of runs (within strata) and prompts, in blocks; see the module's docstring.

    The resampled prompts depend only on the seed, so all methods share them. Different values of `stream` draw runs
    independently.
    """
    for runs, prompts in zip(
        _run_draws(strata, resamples, seed, stream), _prompt_draws(num_prompts, resamples, seed), strict=True
    ):
        yield Draw(runs, prompts)


def resampled_means(scores: Scores, prompts: Scores) -> Scores:
    """(B, N) the mean of each row of scores (N, P) over resampled prompts, given as counts (B, P).

    nan where the row was judged on none of the resampled prompts.
    """
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
            drawn = len(group) - 1  # for an unbiased variance; the scaling keeps the weight of the stratum
            runs[:, group] = _counts(rng, rows, len(group), drawn) * len(group) / drawn
        yield runs


@lru_cache(maxsize=2)  # a comparison uses the same draws about a hundred times
def _prompt_draws(num_prompts: int, resamples: int, seed: int) -> tuple[Scores, ...]:
    rng = np.random.default_rng([seed, 0])
    return tuple(_counts(rng, rows, num_prompts) for rows in _blocks(resamples))


def _blocks(resamples: int) -> list[int]:
    return [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]


def _strata(strata: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The rows of each stratum; one group with all rows if some stratum has only one row."""
    members: dict[Hashable, list[int]] = {}
    for row, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(row)
    if any(len(rows) < 2 for rows in members.values()):
        return [np.arange(len(strata))]
    return [np.array(rows) for rows in members.values()]


def _counts(rng: np.random.Generator, rows: int, size: int, drawn: int | None = None) -> Scores:
    """(rows, size) how often each of `size` items is drawn in `drawn` draws (default: `size`) with replacement."""
    draws = rng.integers(size, size=(rows, size if drawn is None else drawn)) + size * np.arange(rows)[:, None]
    return np.bincount(draws.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
