"""Pick among the samples of a problem by the critic's values, without the verifier.

`values[p][s]` is the critic's value of sample s of problem p: before the response's last token for a critic, after it
for a reward model. `correct` is as in `vapo.evals.statistics`. Invalid samples are never picked.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from vapo.errors import ModelError
from vapo.evals.statistics import Scores, unanimous_interval
from vapo.evals.token_blocks import token_blocks
from vapo.models.networks import Critic, Sequences
from vapo.types import Episode


def best_of_n(correct: ArrayLike, values: ArrayLike, n: int) -> Scores:
    """Per problem, the probability that the sample with the highest value among n random ones is right.

    Averages over all subsets of n valid samples: the i-th best of m is the best of a subset with probability
    C(m-i, n-1) / C(m, n), i from 1. Samples with equal values share their probabilities. nan with fewer than n valid
    samples. Raises ValueError for n < 1 or different shapes.
    """
    if n < 1:
        raise ValueError(f"best of n needs n of at least 1, got {n}.")
    verdicts, scores = np.asarray(correct, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if verdicts.shape != scores.shape or verdicts.ndim != 2:
        raise ValueError(f"best of n needs a value for each verdict, got shapes {verdicts.shape} and {scores.shape}.")
    return np.array([_best(row, value, n) for row, value in zip(verdicts, scores, strict=True)])


def weighted_vote(answers: Sequence[Sequence[Hashable | None]], values: ArrayLike, correct: ArrayLike) -> Scores:
    """Per problem, the correctness of the answer whose samples have the highest sum of values; nan if none is valid.

    If some value is negative, all are shifted so that the lowest is 0. If the values of a problem are all 0, its
    samples count equally. Ties and missing answers are treated as in `maj_at_k`. Raises ValueError for different
    shapes.

    Source: weighted majority voting, Li et al. 2023, arXiv:2206.02336, with the critic as the verifier.
    """
    verdicts, scores = np.asarray(correct, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if verdicts.shape != scores.shape or [len(row) for row in answers] != [verdicts.shape[1]] * len(verdicts):
        raise ValueError(f"A weighted vote needs one answer and one value per verdict, tables of {verdicts.shape}.")
    scores = scores - min(0.0, float(scores.min(initial=0.0)))
    return np.array([_vote(*row) for row in zip(answers, scores, verdicts, strict=True)], dtype=np.float64)


def ordered_pairs(correct: ArrayLike, values: ArrayLike) -> tuple[float, int]:
    """Of one problem's pairs of a right and a wrong sample, how many the critic puts in that order, equal values
    counting half, and how many there are."""
    verdicts, scores = np.asarray(correct, dtype=np.float64), np.asarray(values, dtype=np.float64)
    gaps = scores[verdicts == 1][:, None] - scores[verdicts == 0][None, :]
    return float((gaps > 0).sum() + 0.5 * (gaps == 0).sum()), gaps.size


def share_in_order(
    correct: ArrayLike, values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The share of pairs of a right and a wrong sample of one problem that the critic puts in that order, and its
    interval over problems: 0.5 is chance. All nan if no problem has both, the interval's ends also if one problem has.

    If all problems have the same share, the interval is that of `unanimous_interval`.

    Source: the Mann-Whitney statistic within problems; Efron & Tibshirani 1993 for the interval.
    """
    found = [ordered_pairs(*row) for row in zip(np.asarray(correct), np.asarray(values), strict=True)]
    won, pairs = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    won, pairs = won[pairs > 0], pairs[pairs > 0]
    share, each = float(won.sum() / pairs.sum()) if len(pairs) else float("nan"), won / pairs
    if len(pairs) < 2:
        return share, float("nan"), float("nan")
    if (each == each[0]).all():
        exact = unanimous_interval(float(each[0]), len(pairs), level)
        return share, exact.low, exact.high
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    shares = won[drawn].sum(axis=1) / pairs[drawn].sum(axis=1)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return share, float(low), float(high)


@torch.no_grad()
def last_values(critic: Critic, episodes: Sequence[Episode], *, tokens_at_once: int) -> list[float]:
    """The critic's value of each response, in reward units.

    The value is that before the last token, or after it if `critic.value_at` is `end`. A batch has at most
    `tokens_at_once` tokens, padding included. Raises ModelError for values that are not finite.
    """
    values = [0.0] * len(episodes)
    device = next(critic.model.parameters()).device
    for block in token_blocks([len(e.prompt.token_ids) + len(e.token_ids) for e in episodes], tokens_at_once):
        chosen = [episodes[i] for i in block]
        sequences = Sequences(
            tuple(torch.tensor([*e.prompt.token_ids, *e.token_ids], device=device) for e in chosen),
            tuple(len(e.token_ids) for e in chosen),
        )
        lengths = torch.tensor(sequences.response_lengths)
        if critic.value_at == "end":
            found = critic.final_values(sequences).cpu()
        else:
            found = critic.values(sequences, max(1, int(lengths.max()))).cpu()[torch.arange(len(chosen)), lengths - 1]
        for i, value in zip(block, found.tolist(), strict=True):
            values[i] = value
    if not np.isfinite(values).all():
        raise ModelError(
            "The critic returned values that are not finite, so it cannot rank samples. Use another critic."
        )
    return values


def _best(correct: Scores, values: Scores, n: int) -> float:
    valid = ~np.isnan(correct)
    correct, values = correct[valid], values[valid]
    m = len(correct)
    if m < n:
        return float("nan")
    # the probability that the sample at each rank is the best of a subset
    chance, weights = n / m, np.zeros(m)
    for place in range(m - n + 1):
        weights[place] = chance
        chance *= (m - n - place) / (m - 1 - place) if place < m - 1 else 0.0
    order = np.argsort(-values, kind="stable")
    shared = np.zeros(m)
    for value in np.unique(values):
        same = values[order] == value
        shared[same] = weights[same].mean()
    return float((shared * correct[order]).sum())


def _vote(answers: Sequence[Hashable | None], values: Scores, correct: Scores) -> float:
    valid = ~np.isnan(correct)
    if not valid.any():
        return float("nan")
    named = [i for i in np.flatnonzero(valid).tolist() if answers[i] is not None]
    if not named:
        return 0.0
    weights = values if values[named].sum() > 0 else np.ones_like(values)
    votes: dict[Hashable, float] = {}
    for i in named:
        votes[answers[i]] = votes.get(answers[i], 0.0) + float(weights[i])
    most = max(votes.values())
    winners = [answer for answer, weight in votes.items() if weight >= most - 1e-12]
    return float(np.mean([np.mean([correct[i] for i in named if answers[i] == winner]) for winner in winners]))
