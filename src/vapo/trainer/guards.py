"""Alarms: figures that show early that a run is going wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vapo.errors import DivergedError
from vapo.trainer import outcomes, snapshot
from vapo.trainer.run import Run
from vapo.trainer.settings import GuardSettings
from vapo.trainer.state import State

HISTORY = 20
"""Steps that a gradient norm is compared with."""
ENOUGH = 5
"""Steps before a gradient norm is compared at all."""


@dataclass(frozen=True)
class Alarm:
    """A figure of a step, when it is bad, and the message after some bad steps in a row."""

    name: str
    metric: str
    bad: Callable[[float, GuardSettings], bool]
    words: str
    at_once: bool = False


ALARMS = (
    Alarm(
        "entropy collapse",
        "entropy",
        lambda x, s: x < s.entropy_below,
        "The policy's entropy is {value:.4f} nats a token, below guards.entropy_below={s.entropy_below}: it writes "
        "almost the same every time and can find nothing new. Raise algorithm.clip.high or lower trainer.actor_lr.",
    ),
    Alarm(
        "critic worse than none",
        "value/explained_variance",
        lambda x, s: x < s.explained_variance_below,
        "The critic's explained variance is {value:.2f}, below guards.explained_variance_below="
        "{s.explained_variance_below}: a constant would foresee outcomes better, so advantages are noise. Pretrain "
        "longer (trainer.pretraining_steps), or lower trainer.critic_lr.",
    ),
    Alarm(
        "length at the limit",
        "completions/clipped_ratio",
        lambda x, s: x > s.clipped_ratio_above,
        "{value:.0%} of the responses are cut off at the length limit, above guards.clipped_ratio_above="
        "{s.clipped_ratio_above}: they are judged without their ends. Raise rollout.max_response_tokens, or use a "
        "preset that punishes length (dapo).",
    ),
    Alarm(
        "step too far",
        "kl/update",
        lambda x, s: x > s.kl_update_above,
        "The updates of one step moved the policy by {value:.2g} nats a token (kl/update), above "
        "guards.kl_update_above={s.kl_update_above}: it is no longer near the policy that sampled, and a few such "
        "steps destroy a model. Lower trainer.actor_lr.",
        at_once=True,
    ),
)
TOO_FEW = "too few with a signal"
TOO_FEW_WORDS = (
    "Only {kept} of {wanted} responses carry a signal after all refills. Use easier or harder prompts, or raise "
    "algorithm.sampling.refill_rounds."
)
SPIKE = (
    "The gradient norm of the {name} is {value:.3g}, {times:.0f} times the median of the last {count} steps "
    "(guards.grad_norm_above={s.grad_norm_above}). One bad batch does this, or a learning rate that is too high: "
    "lower trainer.{rate}."
)
_RATES = {"policy": "actor_lr", "critic": "critic_lr"}


def new_alarms(
    figures: Mapping[str, Any], state: State, settings: GuardSettings, *, kept: int = 0, wanted: int = 0
) -> dict[str, str]:
    """The messages of alarms that begin with this step, by name; updates streaks and gradient norms in the state.

    A figure must be bad for `patience` steps in a row, or once for an alarm that is `at_once`; a gradient spike raises
    an alarm at once, too. An alarm that lasts is raised once. `kept` of `wanted` responses of the step carry a signal.
    """
    begun = _same_outcomes(figures, state, settings)
    for alarm in ALARMS:
        value = figures.get(alarm.metric)
        bad = value is not None and not math.isnan(value) and alarm.bad(value, settings)
        state.streaks[alarm.name] = state.streaks.get(alarm.name, 0) + 1 if bad else 0
        if state.streaks[alarm.name] == (1 if alarm.at_once else settings.patience):
            begun[alarm.name] = alarm.words.format(value=value, s=settings)
    state.streaks[TOO_FEW] = state.streaks.get(TOO_FEW, 0) + 1 if kept < wanted else 0
    if state.streaks[TOO_FEW] == settings.patience:
        begun[TOO_FEW] = TOO_FEW_WORDS.format(kept=kept, wanted=wanted)
    for name, rate in _RATES.items():
        norm = figures.get(f"grad_norm/{name}")
        if norm is None:  # all its gradient steps were skipped; count_skips raises that alarm
            continue
        earlier = state.recent.get(name, [])
        usual = statistics.median(earlier) if len(earlier) >= ENOUGH else math.inf
        if norm > settings.grad_norm_above * usual:
            begun[f"gradient spike of the {name}"] = SPIKE.format(
                name=name, value=norm, times=norm / usual, count=len(earlier), rate=rate, s=settings
            )
        state.recent[name] = [*earlier, norm][-HISTORY:]
    return begun


def _same_outcomes(figures: Mapping[str, Any], state: State, settings: GuardSettings) -> dict[str, str]:
    """The alarm of steps in a row whose responses are all wrong, or all right, if it begins; their counts add up in
    the state."""
    step = outcomes.tally_of(figures)
    same = outcomes.sameness(step)
    for name in (outcomes.NOTHING_RIGHT, outcomes.NOTHING_WRONG):
        state.streaks[name] = state.streaks.get(name, 0) + 1 if name == same else 0
    if same is None:
        state.verdicts = {}
        return {}
    before = state.verdicts if state.streaks[same] > 1 else {}
    state.verdicts = {key: before.get(key, 0) + count for key, count in step.items()}
    if state.streaks[same] != settings.same_outcome_steps:
        return {}
    return {same: outcomes.lesson(state.verdicts, f"in {settings.same_outcome_steps} steps")}


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
        raise DivergedError(f"Stopped by an alarm (guards.action=stop). {first}")
    if not may_roll_back:
        return False
    if run.state.rollbacks >= run.guards.max_rollbacks:
        raise DivergedError(f"{run.state.rollbacks} rollbacks did not help (guards.max_rollbacks). {first}")
    snapshot.roll_back(run, ", ".join(alarms))
    return True
