"""Alarms: metrics that show early that a run fails, and the action that follows: warn, stop or roll back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vapo.algo.method import Algorithm
from vapo.errors import DivergedError, command, counted
from vapo.metrics import METRICS
from vapo.trainer import outcomes, snapshot
from vapo.trainer.run import Run
from vapo.trainer.settings import GuardSettings
from vapo.trainer.state import State

HISTORY = 20
"""A gradient norm is compared with the median of this many steps before it that had a gradient."""
ENOUGH = 5
"""A gradient norm is compared after at least this many steps."""
ROUNDING = 1e-6
"""Smaller gradient norms are rounding errors: steps of equal rewards of 0.1 had 1e-7, steps with a signal 0.1 to 1."""


@dataclass(frozen=True)
class Alarm:
    """When a metric of a step is bad. The message is `figure` and what the table of metrics advises."""

    name: str
    metric: str
    bad: Callable[[float, GuardSettings], bool]
    figure: str
    """A sentence with the value and the setting it is compared with."""
    at_once: bool = False
    """Raised at the first bad step, not after `guards.patience` of them."""
    rather: str = ""
    """A metric that is judged instead where the step has it."""
    only_if: tuple[tuple[str, float], ...] = ()
    """Metrics, each of which must be above its number for the alarm to mean anything."""

    def message(self, value: float, settings: GuardSettings, metric: str) -> str:
        """The alarm in words."""
        return _with_advice(self.figure.format(value=value, s=settings), metric)


ALARMS = (
    Alarm(
        "entropy collapse",
        "entropy",
        lambda x, s: x < s.entropy_below,
        "The policy's entropy is {value:.4f} nats a token, below guards.entropy_below={s.entropy_below}",
    ),
    Alarm(
        "critic worse than none",
        "value/explained_variance",
        lambda x, s: x < s.explained_variance_below,
        "The critic's explained variance is {value:.2f}, below guards.explained_variance_below="
        "{s.explained_variance_below}",
        rather="value/residual_explained_variance",
    ),
    Alarm(
        "flat values",
        "value/std",
        lambda x, s: x < s.value_std_below,
        "The critic's values differ by {value:.2g} only, below guards.value_std_below={s.value_std_below}",
        only_if=(("lr/critic", 0.0), ("reward_std", 1e-6)),  # equal outcomes teach equal values
    ),
    Alarm(
        "dead value head",
        "value/head_step",
        lambda x, s: x == 0,
        "The value head moved by {value:g} in guards.patience={s.patience} steps in which the critic had a gradient",
        only_if=(("grad_norm/critic", ROUNDING), ("lr/critic", 0.0)),
    ),
    Alarm(
        "critic adds variance",
        "advantages/variance_ratio",
        lambda x, s: x > s.variance_ratio_above,
        "With the critic the advantages vary {value:.2f} times as much as with the group's mean, above "
        "guards.variance_ratio_above={s.variance_ratio_above}",
    ),
    Alarm(
        "length at the limit",
        "completions/clipped_ratio",
        lambda x, s: x > s.clipped_ratio_above,
        "{value:.0%} of the responses are cut off at the length limit, above guards.clipped_ratio_above="
        "{s.clipped_ratio_above}",
    ),
    Alarm(
        "step too far",
        "kl/update",
        lambda x, s: x > s.kl_update_above,
        "The updates of one step moved the policy by {value:.2g} nats a token (kl/update), above "
        "guards.kl_update_above={s.kl_update_above}",
        at_once=True,
    ),
    Alarm(
        "sampler disagrees",
        "sampler/logp_gap_mean",
        lambda x, s: s.logp_gap_above is not None and x > s.logp_gap_above,
        "Sampler and trainer differ by {value:.2g} nats a token, above guards.logp_gap_above={s.logp_gap_above}",
    ),
)
TOO_FEW = "too few with a signal"
TOO_FEW_FIGURE = "Only {kept} of {wanted} responses carry a signal after all refills"
SPIKE_FIGURE = (
    "The gradient norm of the {name} is {value:.3g}, {times:.0f} times the median of the last {count} steps with a "
    "gradient (guards.grad_norm_above={s.grad_norm_above})"
)


def _with_advice(figure: str, metric: str) -> str:
    """Two sentences: the figure, and the advice that the table of metrics has for it."""
    advice = METRICS[metric].plain_advice
    return f"{figure}. {advice[0].upper()}{advice[1:]}."


def new_alarms(
    figures: Mapping[str, Any],
    state: State,
    settings: GuardSettings,
    *,
    kept: int = 0,
    wanted: int = 0,
    algorithm: Algorithm | None = None,
    task: str = "",
) -> dict[str, str]:
    """The messages of the alarms that this step raises, by name; updates streaks and gradient norms in the state.

    A metric raises its alarm after `guards.patience` bad steps in a row; an alarm `at_once` and a gradient spike need
    one. A streak of bad steps raises its alarm once. `kept` of `wanted` responses of the step carry a signal.
    `algorithm` says whether outcomes are verdicts (None) or scores; `task` names the task, for the advice.
    """
    raised = _same_outcomes(figures, state, settings, algorithm, task)
    for alarm in ALARMS:
        metric = alarm.rather if alarm.rather in figures else alarm.metric
        value = _figure(figures, metric)
        means_something = all(_figure(figures, needed) > least for needed, least in alarm.only_if)
        bad = not math.isnan(value) and alarm.bad(value, settings) and means_something
        state.streaks[alarm.name] = state.streaks.get(alarm.name, 0) + 1 if bad else 0
        if state.streaks[alarm.name] == (1 if alarm.at_once else settings.patience):
            raised[alarm.name] = alarm.message(value, settings, metric)
    state.streaks[TOO_FEW] = state.streaks.get(TOO_FEW, 0) + 1 if kept < wanted else 0
    if state.streaks[TOO_FEW] == settings.patience:
        raised[TOO_FEW] = _with_advice(TOO_FEW_FIGURE.format(kept=kept, wanted=wanted), "sampling/kept_ratio")
    for name in ("policy", "critic"):
        metric = f"grad_norm/{name}"
        norm = figures.get(metric)
        if norm is None:  # all its gradient steps were skipped; count_skips raises that alarm
            continue
        earlier = [past for past in state.recent.get(name, []) if past > ROUNDING]  # equal outcomes give no gradient
        usual = statistics.median(earlier) if len(earlier) >= ENOUGH else math.inf
        if norm > settings.grad_norm_above * usual:
            figure = SPIKE_FIGURE.format(name=name, value=norm, times=norm / usual, count=len(earlier), s=settings)
            raised[f"gradient spike of the {name}"] = _with_advice(figure, metric)
        state.recent[name] = [*earlier, norm][-HISTORY:]
    return raised


def _figure(figures: Mapping[str, Any], metric: str) -> float:
    """The metric of this step; NaN where it is undefined or missing."""
    found = figures.get(metric)
    return math.nan if found is None else float(found)


def _same_outcomes(
    figures: Mapping[str, Any], state: State, settings: GuardSettings, algorithm: Algorithm | None, task: str
) -> dict[str, str]:
    """The alarm for `same_outcome_steps` steps in a row in which no outcome differs from another, if it is due.

    Adds the counts of these steps up in the state.
    """
    step = outcomes.tally_of(figures)
    scored = algorithm if algorithm is not None and algorithm.reward.by == "score" else None
    same = outcomes.sameness_of_scores(figures, step, scored) if scored else outcomes.sameness(step)
    for name in outcomes.SAMENESS:
        state.streaks[name] = state.streaks.get(name, 0) + 1 if name == same else 0
    if same is None:
        state.verdicts = {}
        return {}
    before = state.verdicts if state.streaks[same] > 1 else {}
    state.verdicts = {key: before.get(key, 0) + count for key, count in step.items()}
    if state.streaks[same] != settings.same_outcome_steps:
        return {}
    where = f"in {counted(settings.same_outcome_steps, 'step')}"
    if scored:
        return {same: outcomes.lesson_of_scores(same, state.verdicts, where, _figure(figures, "reward"))}
    return {same: outcomes.lesson(state.verdicts, where, task)}


def apply_alarms(run: Run, alarms: Mapping[str, str], *, may_roll_back: bool = True) -> bool:
    """Log the alarms, then warn, stop or roll back as `guards.action` says; True if the run was rolled back.

    Raises DivergedError to stop: on action=stop, or when `guards.max_rollbacks` rollbacks have not helped.
    """
    for name, message in alarms.items():
        run.alarm(message, name=name)
    if not alarms or run.guards.action == "warn":
        return False
    first = next(iter(alarms.values()))
    if run.guards.action == "stop":
        raise DivergedError(f"Stopped by an alarm (guards.action=stop). {first}", fix=_way_on(run))
    if not may_roll_back:
        return False
    if run.state.rollbacks >= run.guards.max_rollbacks:
        found = f"{counted(run.state.rollbacks, 'rollback')} did not help (guards.max_rollbacks). {first}"
        raise DivergedError(found, fix=_way_on(run))
    snapshot.roll_back(run, ", ".join(alarms), alarms)
    return True


def _way_on(run: Run) -> str:
    """How to train on from the last checkpoint in spite of the alarm."""
    again = command("resume", run.folder.path, "--set", "guards.action=warn", "--allow-change")
    return f"To go on all the same: {again}"
