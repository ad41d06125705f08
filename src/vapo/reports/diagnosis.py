"""What is wrong with a run, in words: findings from its files, each with the evidence and what to try.

Every rule is a function of the run's files. Limits are those of the run's own guards where there are some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vapo.errors import command, counted
from vapo.metrics import EventName, Phase
from vapo.reports.critic_findings import critic, pretraining
from vapo.reports.findings import Finding, Rule, is_number, is_of_trainer, late_steps, mean_of, setting_of
from vapo.reports.runfiles import RunFiles
from vapo.reports.score_change import direction
from vapo.reports.training_findings import gradients, length, outcomes, policy, verifier

VERIFIER_BROKEN = "verifier broken"
"""The name of the event of a run that ended because it could not judge."""
EQUAL_OUTCOMES = ("nothing right", "nothing wrong", "equal scores")
"""Findings of a run whose outcomes are all equal: every advantage is 0, and there is nothing to learn."""
ITS_EFFECTS = ("the policy hardly moves", "flat values", "dead value head", "critic explains nothing",
               "critic worse than none", "critic was not ready", "nothing learned")  # fmt: skip
"""Findings that follow from equal outcomes, and whose own remedies cannot help."""


def diagnose(run: RunFiles) -> list[Finding]:
    """All findings, errors first. What only follows from another finding is named in its evidence."""
    found = _without_effects([finding for rule in RULES for finding in rule(run)])
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.weight))


def _without_effects(found: Sequence[Finding]) -> list[Finding]:
    causes = [finding for finding in found if finding.name in EQUAL_OUTCOMES]
    effects = [finding.name for finding in found if finding.name in ITS_EFFECTS]
    if not causes or not effects:
        return list(found)
    cause = causes[0]
    told = replace(cause, evidence=f"{cause.evidence}. From this follow: {', '.join(effects)}")
    return [told if finding is cause else finding for finding in found if finding.name not in ITS_EFFECTS]


def _broken_verifier(run: RunFiles) -> Iterable[Finding]:
    broken = [event for event in run.alarms if event.get("name") == VERIFIER_BROKEN]
    if broken and not (run.path / "policy").exists():
        yield Finding("verifier broken", "error", str(broken[-1].get("message")), "mend what the message names")


def _nothing_logged(run: RunFiles) -> Iterable[Finding]:
    if not run.metrics:
        yield Finding(
            "no step",
            "error",
            "metrics.jsonl has no line: the run ended before its first step",
            f"see how it ends with: {command('resume', run.path)}",
        )


def _ended(run: RunFiles) -> Iterable[Finding]:
    if diverged := [event for event in run.events if event.get("event") == EventName.DIVERGED]:
        advice = "lower trainer.actor_lr and trainer.critic_lr by 3"
        # a rollback answers alarms of the guards, which have names; numbers that are not finite end a run under each
        by_guards = bool(run.alarms) and bool(run.alarms[-1].get("name"))
        if by_guards and setting_of(run, "guards", "action", "warn") == "stop":
            advice += ", or set guards.action=rollback"
        if (skipped := run.path / "skipped").is_dir():
            advice += f"; the minibatches that were skipped lie in {skipped}"
        yield Finding("diverged", "error", str(diverged[-1].get("message")), advice)
        return
    done, steps = len(run.phase(Phase.TRAIN)), int(setting_of(run, "trainer", "steps", 0))
    written = (run.path / "policy").exists()
    if done < steps or not written:
        what = "its policy/ is of an earlier end" if written else "no policy/"
        yield Finding(
            "unfinished",
            "warning",
            f"{done} of {counted(steps, 'joint step')} done, {what}: it was stopped or killed, or runs",
            f"if it does not run, go on with: {command('resume', run.path)}",
        )


def _damaged(run: RunFiles) -> Iterable[Finding]:
    if damaged := sorted((run.path / "checkpoints").glob("*.corrupt")):
        yield Finding(
            "damaged checkpoints",
            "warning",
            f"{counted(len(damaged), 'checkpoint')} did not match the manifest: {', '.join(p.name for p in damaged)}",
            "look at the disk; the run goes on from the newest healthy one",
        )


def _rolled_back(run: RunFiles) -> Iterable[Finding]:
    if back := [event for event in run.events if event.get("event") == EventName.ROLLED_BACK]:
        reasons = Counter(str(event.get("reason")) for event in back)
        yield Finding(
            "rolled back",
            "warning",
            f"{counted(len(back), 'time')}; most often: {reasons.most_common(1)[0][0]}",
            "lower trainer.actor_lr, or look at the responses of the steps in question",
        )


def _result(run: RunFiles) -> Iterable[Finding]:
    # one prompt has no interval, and nothing can be said
    scores = [e for e in run.evaluations if all(is_number(e.get(name)) for name in ("avg", "low", "high"))]
    if len(scores) < 2:
        return
    first, last, best = scores[0], scores[-1], max(scores, key=lambda line: line["avg"])
    if direction(first, last) == "fell":
        yield Finding(
            "worse than before",
            "error",
            f"held-out accuracy fell from {first['avg']:.1%} to {last['avg']:.1%}",
            "see the findings above; the checkpoint of the best evaluation is the one to keep",
        )
    elif direction(best, last, choices=len(scores) - 1) == "fell":
        yield Finding(
            "past its best",
            "warning",
            f"held-out accuracy was {best['avg']:.1%} at step {best['step']} and is {last['avg']:.1%} now",
            "train for fewer steps, or lower trainer.actor_lr",
        )
    elif direction(first, last) != "rose" and len(run.phase(Phase.TRAIN)) >= 20:
        yield Finding(
            "nothing learned",
            "warning",
            f"held-out accuracy is {last['avg']:.1%} after {counted(len(run.phase(Phase.TRAIN)), 'step')}, not told "
            f"apart from the {first['avg']:.1%} before",
            "raise trainer.actor_lr by 3, train longer, or see the findings above",
        )


def _time(run: RunFiles) -> Iterable[Finding]:
    late = late_steps(run)
    whole = mean_of(late, "step_time")
    parts = {part: mean_of(late, f"time/{part}") for part in ("verify", "rollout_wait")}
    for part, seconds in parts.items():
        if whole and seconds and seconds > 0.3 * whole:
            what = {"verify": "judging", "rollout_wait": "waiting for the sampler"}[part]
            yield Finding(
                f"time goes into {what}",
                "note",
                f"{seconds / whole:.0%} of a step",
                {
                    "verify": "make the reward functions faster"
                    if is_of_trainer(run)
                    else "raise task.verifier_workers, or make the verifier faster",
                    "rollout_wait": "sampling is the slower half: more rollout workers or slots",
                }[part],
            )


RULES: Sequence[Rule] = (
    _broken_verifier,
    _nothing_logged,
    _ended,
    _damaged,
    _rolled_back,
    verifier,
    outcomes,
    length,
    policy,
    gradients,
    pretraining,
    critic,
    _result,
    _time,
)
