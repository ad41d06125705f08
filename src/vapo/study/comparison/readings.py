"""What a comparison reads from each run: its score after training, and at points that every run reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from vapo.evals.statistics import Scores
from vapo.study.comparison.bootstrap import run_means
from vapo.study.comparison.compared_run import ComparedRun, Evaluation
from vapo.study.comparison.score_curves import RunCurve, mean_height, rates_at

FALL = 0.15
"""A run fell if it ends this far below its best evaluation, and ended low this far below its method's median.

The standard error of avg@1 on 200 prompts is 0.035.
"""
BELOW_START = 0.07
"""A run also ended low this far below its own first evaluation: two of those standard errors."""
Reading = Callable[[ComparedRun], Scores]
"""A function that returns a run's success rate on each held-out prompt (P,) at some point of training."""
PairReading = Callable[[ComparedRun, ComparedRun], tuple[Scores, Scores]]
"""A function that returns the success rates (P,) of both runs of a pair at some point that both reached."""


def most_reached(finished: Sequence[ComparedRun]) -> dict[str, float]:
    """The most samples, seconds and gradient steps that every finished run reached."""
    return {
        "samples": min(c.final.samples for c in finished),
        "samples_with_pretraining": min(c.final.samples + c.pretraining.samples for c in finished),
        "seconds": min(c.final.seconds + c.pretraining.seconds for c in finished),
        "area_gradient_steps": min(c.final.gradient_steps for c in finished),
    }


def readings_at(reached: dict[str, float]) -> dict[str, Reading]:
    """The readings of a comparison by name, at what every run reached."""
    samples, seconds = reached["samples_with_pretraining"], reached["seconds"]
    return {
        "final": lambda run: run.final.rates,
        "equal_samples": lambda run: rates_at(curve_of(run, by_samples), reached["samples"]),
        "equal_samples_with_pretraining": lambda run: rates_at(curve_of(run, by_all_samples), samples),
        "equal_seconds": lambda run: rates_at(curve_of(run, by_all_seconds), seconds),
        "area": lambda run: mean_height(curve_of(run, by_gradient_steps), reached["area_gradient_steps"]),
    }


def pair_readings_at(reached: dict[str, float]) -> dict[str, PairReading]:
    """The readings of paired differences by name: those of `readings_at`, and one where a pair's shorter run ends."""
    return {name: of_both(reading) for name, reading in readings_at(reached).items()} | {"pair_seconds": at_shorter_end}


def of_both(reading: Reading) -> PairReading:
    """The reading of each of two runs."""
    return lambda run, other: (reading(run), reading(other))


def at_shorter_end(run: ComparedRun, other: ComparedRun) -> tuple[Scores, Scores]:
    """The success rates of two runs after the seconds that the shorter of them took in all."""
    seconds = min(by_all_seconds(one, one.final) for one in (run, other))
    return rates_at(curve_of(run, by_all_seconds), seconds), rates_at(curve_of(other, by_all_seconds), seconds)


def curve_of(run: ComparedRun, axis: Callable[[ComparedRun, Evaluation], float]) -> RunCurve:
    """The run's held-out curve over an axis."""
    x = np.array([axis(run, e) for e in run.evaluations], dtype=np.float64)
    return RunCurve(x, np.array([e.rates for e in run.evaluations]))


def by_gradient_steps(_: ComparedRun, evaluation: Evaluation) -> int:
    """Gradient steps of the policy."""
    return evaluation.gradient_steps


def by_samples(_: ComparedRun, evaluation: Evaluation) -> int:
    """Training samples without those of value pretraining."""
    return evaluation.samples


def by_all_samples(run: ComparedRun, evaluation: Evaluation) -> int:
    """Training samples with those of value pretraining."""
    return evaluation.samples + run.pretraining.samples


def by_all_seconds(run: ComparedRun, evaluation: Evaluation) -> float:
    """Seconds of training with those of value pretraining, without evaluations."""
    return evaluation.seconds + run.pretraining.seconds


def mean_score(runs: Sequence[ComparedRun]) -> float:
    """The mean final score of some runs."""
    return float(run_means(np.array([run.final.rates for run in runs])).mean())


def fell(run: ComparedRun) -> bool:
    """Whether the run ended far below its own best evaluation, which is a collapse without an error."""
    return float(curve_of(run, by_gradient_steps).means.max()) - mean_score([run]) > FALL


def num_ended_low(group: Sequence[ComparedRun]) -> int:
    """The number of runs that end far below the median of their method, or clearly below their own first evaluation."""
    scores = [mean_score([run]) for run in group]
    starts = [float(np.nanmean(run.evaluations[0].rates)) for run in group]
    middle = median(scores) if scores else math.nan
    return sum(
        score < middle - FALL or score < start - BELOW_START for score, start in zip(scores, starts, strict=True)
    )
