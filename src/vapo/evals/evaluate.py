"""avg@k, pass@k and maj@k of one policy on one set of prompts, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vapo.evals.statistics import avg_at_k, bootstrap_interval, counts, maj_at_k, pass_at_k
from vapo.rollout.collect import judge, sample
from vapo.rollout.engine import RolloutEngine
from vapo.types import Decoding, Episode, Prompt, Task


@dataclass(frozen=True)
class EvaluationResult:
    """What `vapo eval` prints and `evaluations.jsonl` holds.

    `avg` is the mean over prompts of the share of right samples, `low`/`high` its 95 % bootstrap interval over
    prompts; `pass_at` maps k to the unbiased chance that one of k samples is right; `maj` is the majority
    vote's accuracy, None where the task has no final answer to vote on. Invalid verdicts take no part.
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

    def summary(self) -> dict[str, Any]:
        """Everything but the per-prompt table, as JSON."""
        data = {name: value for name, value in asdict(self).items() if name not in {"per_prompt", "pass_at"}}
        return {**data, "pass": {str(k): value for k, value in self.pass_at.items()}}

    def tallies(self) -> dict[str, list[int]]:
        """`right` and `valid` samples of each prompt, in order: what paired comparisons of runs need."""
        return {name: [row[name] for row in self.per_prompt] for name in ("right", "valid")}


def evaluate(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    task: Task,
    *,
    k: int,
    how: Decoding,
    decode: Callable[[Sequence[int]], str],
    seed: int,
    answer_of: Callable[[str], str | None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """k samples of each rendered prompt, judged and counted.

    The samples' seeds depend on the seed, the prompt and the sample's number only, so two policies meet the
    same luck and their difference can be paired. `answer_of` extracts what maj@k votes on.
    """
    episodes = sample(
        engine,
        prompts,
        per_prompt=k,
        how=how,
        decode=decode,
        seed=seed,
        step="evaluation",
        on_progress=on_progress,
    )
    return count(judge(episodes, task), k=k, answer_of=answer_of)


def count(
    episodes: Sequence[Episode], *, k: int, answer_of: Callable[[str], str | None] | None = None
) -> EvaluationResult:
    """The result of judged episodes that stand in blocks of k samples a prompt."""
    correct = np.array([e.verdict.right if e.verdict.valid else np.nan for e in episodes], dtype=float).reshape(-1, k)
    scores = avg_at_k(correct)
    interval = bootstrap_interval(scores)
    n, c = counts(correct)
    ks = sorted({1, *(2**i for i in range(1, 12) if 2**i <= k), k})
    lengths = np.array([len(e.completion.token_ids) if e.verdict.valid else np.nan for e in episodes])
    cut = np.array([e.truncated if e.verdict.valid else np.nan for e in episodes], dtype=float)
    majority = None
    if answer_of is not None:
        answers = [answer_of(e.response) for e in episodes]
        majority = _mean(maj_at_k([answers[i : i + k] for i in range(0, len(answers), k)], correct))
    return EvaluationResult(
        k=k,
        prompts=len(scores),
        avg=_mean(scores),
        low=interval.low,
        high=interval.high,
        pass_at={j: _mean(pass_at_k(n, c, j)) for j in ks},
        maj=majority,
        mean_length=_mean(lengths),
        clipped_ratio=_mean(cut),
        invalid_ratio=float(np.isnan(correct).mean()),
        per_prompt=[
            {
                "prompt_id": episodes[row * k].prompt.id,
                "right": int(c[row]),
                "valid": int(n[row]),
                "mean_length": _mean(lengths[row * k : (row + 1) * k]),
            }
            for row in range(len(scores))
        ],
    )


def _mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if (~np.isnan(scores)).any() else float("nan")
