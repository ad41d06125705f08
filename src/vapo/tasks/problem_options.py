"""The options of tasks on data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from vapo.errors import ConfigError
from vapo.ranges import check_ranges, number
from vapo.tasks.builtin import read_options

INSTRUCTION = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
CHECKABLE = ("math", "exact")
"""Verifiers that must accept the gold answers at the start, because the form of a right response is known for them."""


@dataclass(frozen=True)
class ProblemOptions:
    """The data, the form of the prompts, and the verifier."""

    data: str | None = None
    """Problems to train on: a file (.jsonl, .json, .csv, .parquet), a folder, or a hub data set."""
    subset: str | None = None
    """The name of a configuration of the hub data set; null takes its only one."""
    split: str = "train"
    """The split of a folder or a hub data set."""
    eval_data: str | None = None
    """Problems to evaluate on, as for data; null holds out problems of data."""
    eval_subset: str | None = None
    """As subset, for eval_data."""
    eval_split: str = "test"
    """As split, for eval_data."""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """{prompt: ..., answer: ...}: the columns of problem and answer, if they fit no known layout; a list of columns for
    the prompt is joined with blank lines."""
    heldout: int = number(200, ge=1, unit="problems")
    """The number of problems of data kept for evaluation if there is no eval_data."""
    template: str = INSTRUCTION
    """The text of the prompt, with {problem} for the problem; rows with messages are used unchanged."""
    system: str | None = None
    """The system message before the problem."""
    verifier: str = "math"
    """The verifier: math, exact, an installed plug-in, package.module:function or file.py:function."""
    right_at: float = number(0.99, gt=0)
    """The lowest score that counts as right. With algorithm.reward.by=score a lower one is worth its share, and what is
    right matters to the LM loss, dynamic sampling and accuracy only."""
    verifier_workers: int | None = number(None, ge=1, unit="processes")
    """The number of worker processes that judge; null means one per core, at most 8."""
    verifier_timeout_s: float = number(1.0, ge=0.05, le=600, unit="seconds")
    """Time limit of one verdict; a response that takes longer is invalid."""
    verifier_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of a worker process."""
    environment: str | None = None
    """Makes episodes of several turns: package.module:name or file.py:name of an environment, a class or a function
    (docs/environments.md). null ends an episode after one turn."""
    max_turns: int = number(16, ge=1, unit="turns")
    """The most turns of the policy in an episode with an environment."""
    environment_timeout_s: float = number(10.0, ge=0.05, le=3600, unit="seconds")
    """Time limit of one call of the environment; an episode that has to wait longer is invalid."""
    environment_memory_mb: int = number(2048, ge=256, le=1 << 20, unit="MiB")
    """Memory limit of an episode's environment, which is a process of its own."""
    environment_characters: int = number(10_000, ge=1, unit="characters")
    """The most characters of one answer of the environment; the rest is left out, with a mark."""
    environment_workers: int | None = number(None, ge=1, unit="environments")
    """How many environments work at the same time; null means one per core, at most 8."""
    max_response_tokens: int = number(1024, ge=1, unit="tokens")
    """Length limit of a response, if rollout.max_response_tokens sets none. All turns count, and what the environment
    says."""

    def __post_init__(self) -> None:
        check_ranges(self, "task")
        if "{problem}" not in self.template:
            raise ConfigError(f"task.template must hold {{problem}}, where the problem goes, got {self.template!r}.")
        if self.data is None and self.eval_data is None:
            raise ConfigError(
                "This task has no problems of its own: give them with --set task.data=FILE (or a hub data set)."
            )


def problem_options(name: str, options: Mapping[str, Any]) -> ProblemOptions:
    """The options of a data task; ConfigError for an unknown option or a wrong value. Reads no data."""
    names = [f.name for f in fields(ProblemOptions)]
    if unknown := sorted(set(options) - set(names)):
        raise ConfigError(f"The task {name!r} has no option {unknown[0]!r}. There are: {', '.join(names)}.")
    return read_options(ProblemOptions, options)
