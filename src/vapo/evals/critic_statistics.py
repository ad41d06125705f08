"""How good a critic is against Monte-Carlo values: numbers corrected for the noise of a few continuations.

Everything starts from prefixes of sampled responses. Arrays are prompts × responses, (M, G), or prompts × responses ×
positions; nan is "not known" and is left out. Of a prefix with K continuations:

    p̂ = share of right ones          noise = p̂·(1 - p̂)/(K - 1)

`noise` is an unbiased estimate of the variance of p̂ around the true success rate p. A squared distance to p̂ is on
average too large by the variance of p̂, so it is corrected by subtracting the noise.

Source of the values: VinePPO, arXiv:2410.01679, §4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Bin(NamedTuple):
    """States of neighbouring critic values: how many, the mean value, the mean Monte-Carlo value, and the variance
    of the latter that comes from the sampling of the continuations."""

    states: int
    value: float
    monte_carlo: float
    noise: float


def monte_carlo_values(
    right: ArrayLike, valid: ArrayLike, *, reward_right: float = 1.0, reward_wrong: float = 0.0
) -> tuple[Array, Array]:
    """The Monte-Carlo value of each prefix in units of reward, and the unbiased variance of its noise.

        value = wrong + (right - wrong)·p̂          noise = (right - wrong)²·p̂·(1 - p̂)/(K - 1)

    `right` and `valid` count the continuations of each prefix; K is the number of valid ones. Both results are nan
    where fewer than 2 are valid: the noise of one continuation cannot be estimated.
    """
    c, k = np.asarray(right, dtype=np.float64), np.asarray(valid, dtype=np.float64)
    if ((c < 0) | (c > k)).any():
        raise ValueError("monte_carlo_values needs 0 <= right <= valid.")
    known = k >= 2
    p = np.where(known, c / np.maximum(k, 1), np.nan)
    spread = reward_right - reward_wrong
    return reward_wrong + spread * p, spread**2 * p * (1 - p) / np.maximum(k - 1, 1)


def clustered_variance(x: ArrayLike) -> float:
    """The variance of one random response's x, from M random prompts (rows) with G responses each (columns).

        1/N·Σ (x - x̄)²  +  M/(M - 1)·Σ_prompts n_p²·(x̄_p - x̄)² / N²

    The second term is the variance of the mean x̄, which the first term lacks; a plain N - 1 would not do, because
    responses to one prompt are alike. Unbiased for prompts with equally many responses, also where all of them share
    one x. nan with fewer than 2 prompts.

    Source: ultimate-cluster variance of a mean, Cochran 1977, "Sampling Techniques", chapter 9.
    """
    x = np.atleast_2d(np.asarray(x, dtype=np.float64))
    known = ~np.isnan(x)
    counts = known.sum(axis=1)
    num_prompts, total = int((counts > 0).sum()), int(counts.sum())
    if num_prompts < 2:
        return float("nan")
    gaps = np.where(known, x - np.nanmean(x), 0.0)
    of_mean = np.square(gaps.sum(axis=1)).sum() / total**2
    return float(np.square(gaps).sum() / total + num_prompts / (num_prompts - 1) * of_mean)


def true_variance(monte_carlo: ArrayLike, noise: ArrayLike) -> float:
    """The variance of the true values, unbiased: Var(p̂) less the mean noise. Noise can make it negative."""
    mean = _mean(noise)
    return clustered_variance(monte_carlo) - mean


def unexplained_variance(monte_carlo: ArrayLike, noise: ArrayLike, outcomes: ArrayLike) -> float:
    """The variance of R - V, which an exact critic leaves, in squared units of reward, of tables (M, G).

        Var(R - V) = Var(R - p̂) - mean noise

    Unbiased, because the noise of p̂ knows nothing of the response's own ending. It can be negative by chance; nan with
    fewer than 2 prompts. Raises ValueError for shapes that differ.
    """
    monte_carlo, outcomes = _both(monte_carlo, outcomes)
    known = ~np.isnan(monte_carlo)
    mean = _mean(np.where(known, np.asarray(noise, dtype=np.float64), np.nan))
    return clustered_variance(outcomes - monte_carlo) - mean


def ceiling(monte_carlo: ArrayLike, noise: ArrayLike, outcomes: ArrayLike) -> float:
    """The share of the outcomes' variance that any critic could explain at this position: Var(V) / Var(R).

    V is the true value of the policy's own prefixes, R the outcome of the responses they belong to. Were prefixes cut
    at a place that does not depend on the response, it would lie in [0, 1] and rise with the position, by the law of
    total variance. They are cut at a share of the response's own length, which tells something of the outcome where
    long responses fail; so this is what values of these states explain. The estimate may leave [0, 1] by chance. nan if
    all outcomes are equal.
    """
    return ratio(true_variance(monte_carlo, noise), clustered_variance(outcomes))


def critic_explained_variance(values: ArrayLike, monte_carlo: ArrayLike, outcomes: ArrayLike) -> float:
    """The share of the outcomes' variance that the critic C explains, at most the ceiling up to noise.

        EV = 1 - Var(R - C)/Var(R) = [Var(V) - Var(V - C)] / Var(R) ≈ [Var(p̂) - Var(p̂ - C)] / Var(R)

    The first equality holds where the cut tells nothing of the outcome (see `ceiling`). The noise of p̂ is in both
    variances and cancels. This is the explained variance of training, without the noise of
    the responses' own endings. A constant offset is invisible to it.
    """
    values, monte_carlo = _both(values, monte_carlo)
    explained = clustered_variance(monte_carlo) - clustered_variance(monte_carlo - values)
    return ratio(explained, clustered_variance(outcomes))


def bias(values: ArrayLike, monte_carlo: ArrayLike) -> float:
    """The mean of C - p̂: above 0 the critic expects too much. p̂ is unbiased, so no correction is due."""
    values, monte_carlo = _both(values, monte_carlo)
    return _mean(values - monte_carlo)


def corrected_mse(values: ArrayLike, monte_carlo: ArrayLike, noise: ArrayLike) -> float:
    """The mean squared distance of the critic to the true values: mean (C - p̂)² less the mean noise. Noise can make it
    negative, where the critic is nearly exact."""
    values, monte_carlo = _both(values, monte_carlo)
    known = ~np.isnan(values)
    return _mean(np.square(values - monte_carlo)) - _mean(np.where(known, np.asarray(noise, dtype=np.float64), np.nan))


def group_advantage_variance(outcomes: ArrayLike, others: ArrayLike, group_size: int) -> float:
    """The variance of R less the mean of the prompt's other responses, in groups of n = `group_size` responses.

        Var(R - b) = w·n/(n - 1)          w: the mean variance of outcomes within a prompt

    `others` holds the means b of the G responses there are here; their w·G/(G - 1) is scaled to groups of n.
    """
    gaps = np.asarray(outcomes, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    here = gaps.shape[1]
    if here < 2 or group_size < 2:
        raise ValueError(f"the mean of other responses needs groups of 2 or more, got {here} and {group_size}.")
    return clustered_variance(gaps) * (here - 1) / here * group_size / (group_size - 1)


def spearman(values: ArrayLike, monte_carlo: ArrayLike) -> float:
    """The rank correlation of C with p̂, equal numbers sharing their rank; nan if either is constant.

    Not corrected: the noise of p̂ lowers it, so it is a lower bound, and rises with the number of continuations.

    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    a, b = (x.ravel() for x in _both(values, monte_carlo))
    known = ~np.isnan(a)
    if known.sum() < 2:
        return float("nan")
    ranks = [_ranks(a[known]), _ranks(b[known])]
    deviations = [r - r.mean() for r in ranks]
    size = float(np.sqrt(np.square(deviations[0]).sum() * np.square(deviations[1]).sum()))
    return float((deviations[0] * deviations[1]).sum() / size) if size > 0 else float("nan")


def reliability(
    values: ArrayLike, monte_carlo: ArrayLike, noise: ArrayLike, states: ArrayLike, bins: int = 10
) -> list[Bin]:
    """The states in bins of about equally many, by the critic's value, each with the mean of both values.

    `states` numbers the prefixes: responses that share one share its p̂ and its noise. Equal values stay in one bin.
    """
    values, monte_carlo = _both(values, monte_carlo)
    known = ~np.isnan(values)
    v, m, s = values[known], monte_carlo[known], np.asarray(states)[known]
    n = np.asarray(noise, dtype=np.float64)[known]
    if not len(v):
        return []
    edges = np.unique(np.quantile(v, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, v, side="left")
    found = []
    for at in np.unique(place):
        here = place == at
        _, first, counts = np.unique(s[here], return_index=True, return_counts=True)
        variance = float((np.square(counts / here.sum()) * n[here][first]).sum())
        found.append(Bin(int(here.sum()), float(v[here].mean()), float(m[here].mean()), variance))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """The root mean squared gap between value and outcome over the bins, less what the noise of the continuations adds.

    0 where the noise explains all of it; nan without bins.
    """
    total = sum(b.states for b in bins)
    if not total:
        return float("nan")
    squared = sum(b.states * ((b.value - b.monte_carlo) ** 2 - b.noise) for b in bins) / total
    return float(np.sqrt(max(0.0, squared)))


def _ranks(x: Array) -> Array:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _both(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    """Two tables of one shape, nan in both where it is in either."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"critic and Monte-Carlo values must have one shape, got {one.shape} and {other.shape}.")
    unknown = np.isnan(one) | np.isnan(other)
    return np.where(unknown, np.nan, one), np.where(unknown, np.nan, other)


def _mean(x: ArrayLike) -> float:
    x = np.asarray(x, dtype=np.float64)
    return float(np.nanmean(x)) if (~np.isnan(x)).any() else float("nan")


def ratio(part: float, whole: float) -> float:
    """part / whole; nan where the whole is 0 up to rounding."""
    return part / whole if whole > 1e-12 else float("nan")
