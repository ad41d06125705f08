"""Scores of an evaluation, one per problem: avg@k, pass@k and maj@k; and bootstrap intervals of their means.

All scores are computed from `correct`, a problems × samples matrix of 1 (right), 0 (wrong) and nan (invalid: the
verifier failed). Invalid samples count neither as right nor as wrong and do not vote. A problem without valid samples
has score nan and is left out of means and intervals.

    scores = avg_at_k(correct)                       # (P,)
    np.nanmean(scores), bootstrap_interval(scores)   # the mean and its interval

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
    """The ends of a confidence interval; both nan if it cannot be computed."""

    low: float
    high: float


class Difference(NamedTuple):
    """The mean of `a - b` over the problems with scores on both sides, and its interval."""

    mean: float
    low: float
    high: float


def counts(correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) the number of valid samples n and (P,) the number of right ones c, as for `pass_at_k`."""
    matrix = _verdicts(correct)
    return (~np.isnan(matrix)).sum(axis=1), np.nansum(matrix, axis=1).astype(np.int64)


def avg_at_k(correct: ArrayLike) -> Scores:
    """(P,) the share of right ones among each problem's valid samples; nan where none is valid.

    The mean is the paper's "mean pass rate over 32 samples per problem". Source: arXiv:2504.05118, §5.1.
    """
    num_valid, num_right = counts(correct)
    return np.where(num_valid > 0, num_right / np.maximum(num_valid, 1), np.nan)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Scores:
    """The unbiased estimate of the probability that at least one of k samples is right, from n samples with c right.

        pass@k = 1 - C(n-c, k) / C(n, k) = 1 - Π_{j<k} (n-c-j) / (n-j)

    The product avoids large binomials. n and c broadcast, with one entry per problem. The result is nan where n < k,
    and c/n for k = 1. Raises ValueError for k < 1 or counts outside 0 <= c <= n.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374, eq. 1.
    """
    num, right = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(c, dtype=np.float64))
    if k < 1:
        raise ValueError(f"pass@k needs k of at least 1, got {k}.")
    if (right < 0).any() or (right > num).any():
        raise ValueError("pass@k needs 0 <= c <= n: c counts the right ones among n samples.")
    all_wrong = np.ones_like(num)
    for j in range(k):
        # the factor is 0 if k exceeds the number of wrong samples: one of k is certainly right
        all_wrong *= np.maximum(num - right - j, 0.0) / np.maximum(num - j, 1.0)
    return np.where(num >= k, 1.0 - all_wrong, np.nan)


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], correct: ArrayLike) -> Scores:
    """(P,) the correctness of each problem's most frequent final answer; nan where no sample is valid.

    `answers[p][s]` is the answer that `correct[p][s]` judges, or None if the response has none. None never wins; if
    all valid samples have None, the score is 0. The score of tied answers is their mean, the expected value of a random
    choice. If equal answers have different verdicts, their mean counts. Raises ValueError for different shapes.

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

    The same seed gives the same interval. nan scores are left out; with fewer than two scores both ends are nan. If
    all scores are equal, resampling has no variance, and the result is the exact interval of `unanimous_interval`,
    where `bounds` are the smallest and largest possible scores. Raises ValueError for a level outside (0, 1).

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"An interval's level must be between 0 and 1, got {level}.")
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
    """The exact interval of a mean score if all problems have the same score.

        reach = 1 - ((1 - level) / 2)^(1/n)        32 problems, none solved: [0, 0.109]

    If a share p of all problems had a score above c, n random problems would contain none of them with probability
    (1 - p)^n. So p is at most `reach`, and the mean at most c + reach·(high - c); the lower end is analogous. For c = 0
    and c = 1 this is the Clopper-Pearson interval for 0 and n successes of n.

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

    Pairing removes the problems' difficulty, so the interval is narrower than two separate intervals suggest. A
    problem with nan on either side is left out. Raises ValueError for different numbers of problems.

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
        raise ValueError(f"Verdicts must be a problems × samples matrix, got shape {matrix.shape}.")
    if not (np.isnan(matrix) | (matrix == 0) | (matrix == 1)).all():
        raise ValueError("Verdicts are 1 (right), 0 (wrong) or nan (invalid); found another number.")
    return matrix


def _vote(answers: Sequence[Hashable | None], right: Scores) -> float:
    """The expected correctness of a problem's majority answer."""
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
    """Means of `resamples` draws with replacement, in blocks that bound the memory."""
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // len(scores))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield scores[rng.integers(len(scores), size=(rows, len(scores)))].mean(axis=1)
