"""What is wrong with a run's critic, in words."""

from __future__ import annotations

from collections.abc import Iterable

from vapo.errors import command
from vapo.metrics import EventName, Phase, metric_called
from vapo.reports.findings import (
    FEWEST_STEPS,
    Finding,
    credit_of,
    is_number,
    is_of_trainer,
    late_steps,
    mean_of,
    numbers_of,
    setting_of,
)
from vapo.reports.runfiles import RunFiles

LITTLE = 0.02
"""Share of the outcomes' variance below which a critic explains nothing; as far below 0 it is worse than a constant."""


def pretraining(run: RunFiles) -> Iterable[Finding]:
    """Whether value pretraining ended before the critic was ready."""
    if credit_of(run).get("baseline", "none") != "none":
        return  # a critic beside the group's mean may begin knowing nothing
    wanted = setting_of(run, "trainer", "pretraining_ready", 0.1)
    for event in run.events:
        reached = event.get("explained_variance")
        if event.get("event") == EventName.PRETRAINING_FINISHED and is_number(reached) and reached < wanted:
            yield Finding(
                "critic was not ready",
                "warning",
                f"value pretraining ended at a held-out explained variance of {reached:.2f}, wanted {wanted:g}",
                "raise trainer.pretraining_steps, trainer.pretraining_passes or trainer.pretraining_lr",
            )


def critic(run: RunFiles) -> Iterable[Finding]:
    """A critic that explains nothing, stands still, or adds variance to the advantages."""
    late = late_steps(run)
    residual = mean_of(late, "value/residual_explained_variance")
    explained = residual if residual is not None else mean_of(late, "value/explained_variance")
    if explained is not None and explained < -LITTLE:
        yield Finding(
            "critic worse than none",
            "error",
            f"the critic explains {explained:.1%} of the outcome's variance: less than a constant would",
            "pretrain it longer (trainer.pretraining_steps), change trainer.critic_lr, or take "
            "algorithm.credit.baseline=group, which keeps the critic beside the group's mean (for none: --preset grpo)"
            + ("" if is_of_trainer(run) else "; vapo critic says what any critic could explain here"),
        )
    elif explained is not None and explained < LITTLE:
        yield Finding(
            "critic explains nothing",
            "warning",
            f"the critic explains {explained:.1%} of the outcome's variance",
            "pretrain it longer (trainer.pretraining_steps), or raise trainer.critic_lr"
            if is_of_trainer(run)
            else f"see what any critic could explain here: {command('critic', run.path)}",
        )
    spread, floor = mean_of(late, "value/std"), setting_of(run, "guards", "value_std_below", 1e-4)
    if spread is not None and spread < floor:
        yield Finding(
            "flat values", "error", f"values differ by {spread:.2g} only", metric_called("value/std").plain_advice
        )
    heads = numbers_of(run.phase(Phase.TRAIN), "value/head_step")
    if len(heads) >= FEWEST_STEPS and not any(heads[-FEWEST_STEPS:]):
        yield Finding(
            "dead value head",
            "error",
            "the value head does not move",
            "raise trainer.critic_lr, or thaw the head",
        )
    ratio, most = mean_of(late, "advantages/variance_ratio"), setting_of(run, "guards", "variance_ratio_above", 1.2)
    if ratio is not None and ratio > most:
        yield Finding(
            "critic adds variance",
            "warning",
            f"with the critic the advantages vary {ratio:.2f} times as much as with the group's mean",
            metric_called("advantages/variance_ratio").plain_advice,
        )
