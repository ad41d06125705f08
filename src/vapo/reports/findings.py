"""One finding about a run, and what the rules that make findings read of its files.

Shares and means are over the last third of the joint steps, so that what a run has grown out of is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from vapo.metrics import Phase
from vapo.reports.runfiles import Record, RunFiles
from vapo.tasks.records import PREFIX

Weight = Literal["error", "warning", "note"]
FEWEST_STEPS = 5
"""Joint steps below which nothing is said of how training goes."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or probably so."""

    name: str
    weight: Weight
    evidence: str
    advice: str

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON data."""
        return asdict(self)


Rule = Callable[[RunFiles], Iterable[Finding]]


def is_of_trainer(run: RunFiles) -> bool:
    """Whether a `VAPOTrainer` made the run: no command knows its rows and its reward functions."""
    return str(setting_of(run, "task", "name", "")).startswith(PREFIX)


def late_steps(run: RunFiles, fewest: int = FEWEST_STEPS) -> list[Record]:
    """The last third of the joint steps; none while there are fewer than `fewest`."""
    steps = run.phase(Phase.TRAIN)
    return steps[-max(fewest, len(steps) // 3) :] if len(steps) >= fewest else []


def mean_of(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a metric over the steps that have it; None if none has."""
    values = numbers_of(lines, name)
    return fmean(values) if values else None


def numbers_of(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The finite numbers of a metric, by step."""
    return [line[name] for line in lines if is_number(line.get(name))]


def is_number(value: Any) -> bool:
    """Whether a value of a run's files is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def setting_of(run: RunFiles, section: str, key: str, default: Any = None) -> Any:
    """A setting of the run's config.yaml; `default` where it is missing or null."""
    found = run.config.get(section)
    value = found.get(key, default) if isinstance(found, dict) else default
    return default if value is None else value


def by_score(run: RunFiles) -> bool:
    """Whether the run's outcomes are scores."""
    reward = setting_of(run, "algorithm", "reward", {})
    return isinstance(reward, dict) and reward.get("by") == "score"


def asks_what_is_right(run: RunFiles) -> bool:
    """Whether the method learns from what is right, besides the outcome: the LM loss, and dynamic sampling."""
    method = run.method.get("algorithm") or {}
    return bool(method.get("positive_lm") or (method.get("sampling") or {}).get("refill_rounds"))


def credit_of(run: RunFiles) -> Record:
    """How the method gives credit; empty for a run of vapo 0.1."""
    return (run.method.get("algorithm") or {}).get("credit") or {}


def group_size(run: RunFiles) -> int:
    """Responses to a prompt; a method without groups has 1, whatever config.yaml says."""
    ran = (run.method.get("trainer") or {}).get("group_size")
    return int(ran or setting_of(run, "trainer", "group_size", 2) or 2)
