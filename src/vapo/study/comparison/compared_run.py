"""One run of a comparison: its identity, outcome, cost and held-out evaluations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from vapo.evals.statistics import Scores
from vapo.reports.runfiles import Record

Outcome = Literal["finished", "diverged", "failed", "unfinished"]


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation: its place in training, and the success rate of each prompt."""

    step: int
    k: int
    gradient_steps: int
    samples: int
    """Responses sampled for training before the evaluation, without those of value pretraining."""
    seconds: float
    """Seconds of the training steps before the evaluation, without evaluations and value pretraining."""
    right: Scores
    """(P,) each prompt's number of right samples."""
    valid: Scores
    """(P,) each prompt's number of samples with a verdict."""

    @cached_property
    def rates(self) -> Scores:
        """(P,) share of a prompt's valid samples that are right; nan where none is valid."""
        return np.where(self.valid > 0, self.right / np.maximum(self.valid, 1), np.nan)


@dataclass(frozen=True)
class Pretraining:
    """The cost of the critic before training: the run's own pretraining and that of a shared critic."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    critic: str | None = None
    """The name of the shared critic, if there is one."""
    gradient_steps: int | None = None
    """Gradient steps of the shared critic."""
    explained_variance: float | None = None
    """Explained variance of the finished shared critic, on held-out prompts."""


class Resume(NamedTuple):
    """A resume with other settings: the step (None if it was not recorded) and the changed settings."""

    step: int | None
    changes: list[str]


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison. `evaluations` are in order of steps, and empty unless the run finished."""

    path: str
    """The run directory as the caller named it."""
    task: str
    method: str
    base: str
    seed: int
    outcome: Outcome
    pretraining: Pretraining
    seconds: float
    """Seconds of all training steps, without evaluations."""
    seconds_in_evaluation: float
    versions: Record
    """Versions of the packages, the commit, and the processor."""
    rows: list[Record]
    """The metrics of the training steps, those that a comparison needs: `STEP_METRICS`."""
    settings: Record | None = None
    """The settings that decide the result, which a study writes into cell.json; None without."""
    resumed: tuple[Resume, ...] = ()
    """Resumes with other settings; the run's config.yaml has the last settings only."""
    sets: tuple[str, ...] = ()
    """The held-out sets of the evaluations; more than one is an error."""
    evaluations: tuple[Evaluation, ...] = ()
    kept_from: str | None = None
    """The results.json that the run was taken from; None for a run directory."""

    @property
    def code(self) -> str:
        """The version of the code that made the run: the commit, else vapo's version, as of an installed package."""
        return self.versions.get("commit") or f"vapo {self.versions.get('vapo') or 'of an unknown version'}"

    @property
    def set(self) -> str:
        """The held-out set of the evaluation after training; empty for a run without evaluations."""
        return self.sets[-1] if self.sets else ""

    @property
    def final(self) -> Evaluation:
        """The evaluation after training; finished runs only."""
        return self.evaluations[-1]


def with_verdicts(run: ComparedRun) -> ComparedRun:
    """The run without evaluations whose samples are all invalid; failed if the one after training is among them."""
    if run.outcome != "finished":
        return run
    if not run.final.valid.any():
        return replace(run, outcome="failed", sets=(), evaluations=())
    return replace(run, evaluations=tuple(e for e in run.evaluations if e.valid.any()))
