"""The time that a study still takes, from what its ended cells took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from vapo.algo.method import Gae
from vapo.study.cells import Cell

Kind = Literal["base", "critic", "tuning", "run"]
ORDER: tuple[Kind, ...] = ("base", "critic", "tuning", "run")
"""The stages of a study; each starts when the one before has ended."""


class Work(NamedTuple):
    """One part of a study: a base model to make, or a cell. `steps` counts training and pretraining steps."""

    kind: Kind
    steps: int = 0


class Took(NamedTuple):
    """A part that has ended, and the seconds that it took, pauses left out."""

    work: Work
    seconds: float


def work_of(cell: Cell) -> Work:
    """The work of a cell."""
    credit = cell.config.algorithm.credit
    pretraining = credit.pretraining_steps if isinstance(credit, Gae) else 0
    return Work(cell.kind, cell.config.sections.trainer.steps + pretraining)


def expected_seconds(work: Work, ended: Sequence[Took]) -> float | None:
    """The seconds that a part will take: the mean of its kind, else that of others by steps, else the mean of all.

    None before anything has ended.
    """
    if same := [took.seconds for took in ended if took.work.kind == work.kind]:
        return fmean(same)
    counted = [took for took in ended if took.work.steps]
    if work.steps and counted:
        return work.steps * sum(took.seconds for took in counted) / sum(took.work.steps for took in counted)
    return fmean(took.seconds for took in ended) if ended else None


def seconds_left(
    waiting: Sequence[Work], running: Mapping[Work, Sequence[float]], ended: Sequence[Took], jobs: int
) -> float | None:
    """The seconds until all has ended, with `jobs` at a time; None before anything has ended.

    `running` holds the seconds since each running part started. The stages follow each other; a stage takes at least
    as long as its longest part.
    """
    total = 0.0
    for kind in ORDER:
        left = [expected_seconds(work, ended) for work in waiting if work.kind == kind]
        for work, since in running.items():
            if work.kind == kind:
                whole = expected_seconds(work, ended)
                left += [None if whole is None else max(0.0, whole - seconds) for seconds in since]
        known = [seconds for seconds in left if seconds is not None]
        if len(known) < len(left):
            return None
        total += max(sum(known) / jobs, max(known, default=0.0))
    return total if ended else None
