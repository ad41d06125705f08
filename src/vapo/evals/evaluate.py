"""Evaluate a policy on a set of prompts: avg@k, pass@k and maj@k, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vapo.evals.ranking import best_of_n, share_in_order, weighted_vote
from vapo.evals.samples import SampleFile
from vapo.evals.statistics import (
    RANKS,
    Scores,
    avg_at_k,
    bootstrap_interval,
    counts,
    maj_at_k,
    paired_bootstrap_difference,
    pass_at_k,
)
from vapo.rollout.collect import judge_episodes, sample_episodes, tally
from vapo.rollout.engine import RolloutEngine
from vapo.rollout.turns import TurnRules
from vapo.tasks.full_task import FullTask
from vapo.types import Decoding, Episode, Prompt

CHUNK = 512
"""The number of responses sampled, judged and saved together; an interrupted evaluation loses at most these."""


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of an evaluation, as `vapo eval` prints them and `evaluations.jsonl` stores them.

    `avg` is the mean over prompts of the share of right samples; `low` and `high` are its 95 % bootstrap interval over
    prompts. `pass_at` maps k to the unbiased estimate of the probability that at least one of k samples is right.
    `maj` is the accuracy of the majority vote; None if the task has no final answers. `intervals` has the intervals of
    `pass@k` and `maj`. `ranking` has the scores of a critic that picks among the samples, `in_order` how often it puts
    a right sample of a prompt above a wrong one, with the interval: 0.5 is chance. Invalid verdicts are left
    out of all scores. `verdicts` counts the valid ones: right, and wrong by kind (`vapo.rollout.collect.tally`).
    """

    k: int
    prompts: int
    avg: float
    low: float
    high: float
    pass_at: dict[int, float]
    maj: float | None
    mean_length: float
    clipped_ratio: float
    invalid_ratio: float
    per_prompt: list[dict[str, Any]]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    ranking: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_order: tuple[float, float, float] | None = None
    verdicts: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """All fields except the per-prompt table, as JSON data."""
        data = {name: value for name, value in asdict(self).items() if name not in {"per_prompt", "pass_at"}}
        if not self.ranking:
            del data["ranking"], data["in_order"]
        return {**data, "pass": {str(k): value for k, value in self.pass_at.items()}}

    def tallies(self) -> dict[str, list[int]]:
        """The numbers of `right` and `valid` samples of each prompt, in order, for paired comparisons of runs."""
        return {name: [row[name] for row in self.per_prompt] for name in ("right", "valid")}


def sample_and_judge(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    task: FullTask,
    *,
    k: int,
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    rules: TurnRules | None = None,
    kept: SampleFile | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Sample and judge k responses to each rendered prompt. Returns the episodes in blocks of k per prompt.

    A sample's seed depends only on `seed`, the prompt and the sample's number, so that two policies use the same
    random numbers and can be compared in pairs. Samples in the file `kept` are reused, and new ones are added to it.
    """
    found = {prompt.id: kept.get(prompt) if kept else None for prompt in prompts}
    missing = [prompt for prompt in prompts if found[prompt.id] is None]
    done, step = (len(prompts) - len(missing)) * k, max(1, CHUNK // k) if kept else max(1, len(missing))
    for start in range(0, len(missing), step):
        chunk = missing[start : start + step]
        episodes = sample_episodes(
            engine,
            chunk,
            per_prompt=k,
            how=how,
            decode=decode,
            seed=seed,
            step="evaluation",
            rules=rules,
            on_progress=lambda now, _, before=done: (
                on_progress(before + now, len(prompts) * k) if on_progress else None
            ),
        )
        episodes = judge_episodes(
            episodes,
            task,
            # judging reports progress without increasing the count
            lambda _, of, before=done: on_progress(before + of, len(prompts) * k) if on_progress else None,
            per_prompt=k,
        )
        done += len(episodes)
        for at, prompt in enumerate(chunk):
            found[prompt.id] = episodes[at * k : (at + 1) * k]
            if kept:
                kept.put(prompt, episodes[at * k : (at + 1) * k])
    return [episode for prompt in prompts for episode in found[prompt.id] or ()]


def score_episodes(
    episodes: Sequence[Episode],
    *,
    k: int,
    answer_of: Callable[[str], str | None] | None = None,
    values: Sequence[float] | None = None,
    ranks: Sequence[str] = RANKS,
) -> EvaluationResult:
    """Score judged episodes, given in blocks of k samples per prompt.

    `answer_of` extracts the final answer for maj@k; `maj` is None if at least half of the right responses have none, or
    all responses if none is right. `values` are the critic's values of the episodes; with them, the scores of `ranks`
    are computed.
    """
    correct = np.array([e.verdict.right if e.verdict.valid else np.nan for e in episodes], dtype=float).reshape(-1, k)
    scores = avg_at_k(correct)
    interval = bootstrap_interval(scores)
    n, c = counts(correct)
    ks = powers_to(k)
    passes = {j: pass_at_k(n, c, j) for j in ks}
    lengths = np.array([len(e.token_ids) if e.verdict.valid else np.nan for e in episodes])
    cut = np.array([e.truncated if e.verdict.valid else np.nan for e in episodes], dtype=float)
    intervals: dict[str, tuple[float, float]] = {f"pass@{j}": bootstrap_interval(passes[j]) for j in ks}
    majority = answers = None
    if answer_of is not None:
        flat = [answer_of(e.response) for e in episodes]
        if _can_vote(episodes, flat):
            answers = [flat[i : i + k] for i in range(0, len(flat), k)]
            majority = maj_at_k(answers, correct)
            intervals["maj"] = bootstrap_interval(majority)
    return EvaluationResult(
        k=k,
        prompts=len(scores),
        avg=_mean(scores),
        low=interval.low,
        high=interval.high,
        pass_at={j: _mean(passes[j]) for j in ks},
        maj=None if majority is None else _mean(majority),
        mean_length=_mean(lengths),
        clipped_ratio=_mean(cut),
        invalid_ratio=float(np.isnan(correct).mean()),
        per_prompt=[
            {
                "prompt_id": episodes[row * k].prompt.id,
                "right": int(c[row]),
                "valid": int(n[row]),
                "mean_length": _mean(lengths[row * k : (row + 1) * k]),
                **({} if majority is None else {"maj": float(majority[row])}),
            }
            for row in range(len(scores))
        ],
        intervals=intervals,
        ranking={}
        if values is None
        else critic_ranking(correct, np.reshape(values, (-1, k)), answers, majority, ranks),
        in_order=None if values is None else share_in_order(correct, np.reshape(values, (-1, k))),
        verdicts=tally(episodes),
    )


def _can_vote(episodes: Sequence[Episode], answers: Sequence[str | None]) -> bool:
    """Whether most right responses have an answer, or some responses if none is right.

    A user's verifier may judge responses without a marked answer; votes on the few that have one would say nothing.
    """
    right = [answer for episode, answer in zip(episodes, answers, strict=True) if episode.verdict.right]
    if not right:
        return any(answer is not None for answer in answers)
    return 2 * sum(answer is not None for answer in right) > len(right)


def critic_ranking(
    correct: Scores,
    values: Scores,
    answers: Sequence[Sequence[str | None]] | None,
    majority: Scores | None,
    ranks: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Scores of picking answers by the critic's values, and differences to the majority vote and to a single sample.

    `best_of` maps n to the accuracy of the best of n. Differences are paired over prompts, with 95 % intervals.
    """
    k = correct.shape[1]
    found: dict[str, dict[str, Any]] = {}
    if "best-of-n" in ranks:
        curve = {n: best_of_n(correct, values, n) for n in powers_to(k)}
        found["best-of-n"] = {
            **_compared(curve[k], correct, majority),
            "best_of": {n: _mean(s) for n, s in curve.items()},
        }
    if "weighted-vote" in ranks and answers is not None:
        found["weighted-vote"] = _compared(weighted_vote(answers, values, correct), correct, majority)
    return found


def powers_to(k: int) -> list[int]:
    """The powers of two below k, and k."""
    return sorted({1, *(2**i for i in range(1, 12) if 2**i <= k), k})


def _compared(scores: Scores, correct: Scores, majority: Scores | None) -> dict[str, Any]:
    low, high = bootstrap_interval(scores)
    compared: dict[str, Any] = {"score": _mean(scores), "low": low, "high": high}
    compared["over_avg"] = tuple(paired_bootstrap_difference(scores, avg_at_k(correct)))
    if majority is not None:
        compared["over_maj"] = tuple(paired_bootstrap_difference(scores, majority))
    return compared


def _mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if (~np.isnan(scores)).any() else float("nan")
