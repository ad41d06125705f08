"""Scores of an evaluation: avg@k, pass@k, maj@k, each one number per problem, and bootstrap intervals.

All scores start from `correct`, a problems × samples matrix of 1 (right), 0 (wrong) and nan (invalid: the
verifier could not tell). Invalid samples are left out: they count neither as right nor as wrong and do not
vote. A problem without a single valid sample scores nan and is left out of means and intervals.

    scores = avg_at_k(correct)                       # (P,)
    np.nanmean(scores), bootstrap_interval(scores)   # the number, and how far to trust it

Intervals resample problems, because samples of one problem are not independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
RANKS = ("best-of-n", "weighted-vote")
"""Ways to pick an answer by the critic's values."""


class Interval(NamedTuple):
    """The two ends of a confidence interval; both nan where one cannot be had."""

    low: float
    high: float


class Difference(NamedTuple):
    """The mean of `a - b` over the problems both sides scored, with its interval."""

    mean: float
    low: float
    high: float


def counts(correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per problem, how many samples are valid and how many of those are right: the n and c of `pass_at_k`."""
    matrix = _verdicts(correct)
    return (~np.isnan(matrix)).sum(axis=1), np.nansum(matrix, axis=1).astype(np.int64)


def avg_at_k(correct: ArrayLike) -> Scores:
    """Per problem, the share of its valid samples that are right; nan where none is valid.

    Their mean is the paper's "mean pass rate over 32 samples per problem". Source: arXiv:2504.05118, §5.1.
    """
    num_valid, num_right = counts(correct)
    return np.where(num_valid > 0, num_right / np.maximum(num_valid, 1), np.nan)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Scores:
    """The unbiased chance that at least one of k samples is right, from n samples of which c were.

        pass@k = 1 - C(n-c, k) / C(n, k) = 1 - Π_{j<k} (n-c-j) / (n-j)

    The product never forms a large binomial. n and c broadcast, one entry per problem; the answer is nan
    where n < k, because fewer than k samples cannot tell. With k = 1 it is c/n.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, eq. 1.
    """
    num, right = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(c, dtype=np.float64))
    if k < 1:
        raise ValueError(f"pass@k needs k of at least 1, got {k}.")
    if (right < 0).any() or (right > num).any():
        raise ValueError("pass@k needs 0 <= c <= n: c counts the right ones among n samples.")
    all_wrong = np.ones_like(num)
    for j in range(k):
        # Beyond n-c wrong samples a factor is 0 and stays 0: some sample must be right.
        all_wrong *= np.maximum(num - right - j, 0.0) / np.maximum(num - j, 1.0)
    return np.where(num >= k, 1.0 - all_wrong, np.nan)


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], correct: ArrayLike) -> Scores:
    """Per problem, the chance that its most frequent final answer is right; nan where no sample is valid.

    `answers[p][s]` is the answer that `correct[p][s]` judges; None means none was found in the text. A None
    never wins; where every valid sample is None the score is 0. Of tied winners one is drawn at random: the
    score is the expected value. Should equal answers carry different verdicts, their mean counts.

    Source: self-consistency, Wang et al. 2022, arXiv:2203.11171 (majority vote without weights).
    """
    matrix = _verdicts(correct)
    if [len(row) for row in answers] != [matrix.shape[1]] * len(matrix):
        raise ValueError(f"maj@k needs one answer per verdict, a table of shape {matrix.shape}.")
    return np.array([_vote(row, right) for row, right in zip(answers, matrix, strict=True)], dtype=np.float64)


def bootstrap_interval(
    per_problem_scores: ArrayLike,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """The percentile bootstrap interval of the mean score, resampling problems with replacement.

    The same seed gives the same interval. nan scores are left out; fewer than two problems say nothing
    about spread, so both ends are nan. Where all problems have the same score there is nothing to resample,
    and the exact interval of `unanimous_interval` takes its place; `bounds` are the least and the greatest
    score that there can be.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"An interval's level lies between 0 and 1, got {level}.")
    scores = np.asarray(per_problem_scores, dtype=np.float64).ravel()
    scores = scores[~np.isnan(scores)]
    if len(scores) < 2:
        return Interval(float("nan"), float("nan"))
    if (scores == scores[0]).all():
        return unanimous_interval(float(scores[0]), len(scores), level, bounds)
    means = np.concatenate(list(_resampled_means(scores, resamples, seed)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def unanimous_interval(
    score: float, num_problems: int, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
) -> Interval:
    """The exact interval of a mean score where every one of the problems has the same one.

        reach = 1 - ((1 - level) / 2)^(1/n)        32 problems, none solved: [0, 0.109]

    If a share p of all problems scored higher than c, n random ones would all miss them with probability (1 - p)^n.
    So p is at most `reach`, and the mean at most c + reach·(high - c); the lower end likewise. For c = 0 and c = 1
    this is the interval of Clopper and Pearson for 0 and n successes of n.

    Source: Clopper & Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26(4).
    """
    reach = 1 - ((1 - level) / 2) ** (1 / num_problems)
    low, high = bounds
    return Interval(score - reach * (score - low), score + reach * (high - score))


def paired_bootstrap_difference(
    a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """The mean of `a - b` and its interval, where `a[p]` and `b[p]` score the same problem.

    Pairing takes the problems' difficulty out, so the interval is tighter than two separate ones suggest.
    A problem that is nan on either side is left out.

    Source: Efron & Tibshirani 1993; for model comparisons Koehn 2004, "Statistical Significance Tests for
    Machine Translation Evaluation".
    """
    left, right = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    if left.shape != right.shape:
        raise ValueError(f"Paired scores need equal problems, got {len(left)} and {len(right)}.")
    gaps = left - right
    mean = float(np.nanmean(gaps)) if (~np.isnan(gaps)).any() else float("nan")
    return Difference(mean, *bootstrap_interval(gaps, level, resamples, seed, bounds=(-1.0, 1.0)))


def _verdicts(correct: ArrayLike) -> Scores:
    """`correct` as floats, checked to be a matrix of 0, 1 and nan."""
    matrix = np.asarray(correct, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"Verdicts form a problems × samples matrix, got shape {matrix.shape}.")
    if not (np.isnan(matrix) | (matrix == 0) | (matrix == 1)).all():
        raise ValueError("Verdicts are 1 (right), 0 (wrong) or nan (invalid); found another number.")
    return matrix


def _vote(answers: Sequence[Hashable | None], right: Scores) -> float:
    """The expected correctness of one problem's majority answer."""
    verdicts_of: dict[Hashable, list[float]] = {}
    num_valid = 0
    for answer, verdict in zip(answers, right.tolist(), strict=True):
        if np.isnan(verdict):
            continue
        num_valid += 1
        if answer is not None:
            verdicts_of.setdefault(answer, []).append(verdict)
    if not num_valid:
        return float("nan")
    if not verdicts_of:
        return 0.0
    most = max(map(len, verdicts_of.values()))
    return float(np.mean([np.mean(seen) for seen in verdicts_of.values() if len(seen) == most]))


def _resampled_means(scores: Scores, resamples: int, seed: int) -> Iterator[Scores]:
    """Means of `resamples` draws with replacement, in blocks of a fixed size so memory stays small."""
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // len(scores))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield scores[rng.integers(len(scores), size=(rows, len(scores)))].mean(axis=1)
