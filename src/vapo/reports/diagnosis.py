"""What is wrong with a run, in words: findings from its files, each with the evidence and what to try.

Every rule is a function of the run's files. Shares and means are over the last third of the joint steps, so that what a
run has grown out of is no finding. Limits are those of the run's own guards where there are some.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Literal

from vapo.errors import command, counted
from vapo.metrics import EventName, Phase, metric_called
from vapo.reports.runfiles import Record, RunFiles
from vapo.tasks.records import PREFIX
from vapo.trainer.outcomes import EQUAL

Weight = Literal["error", "warning", "note"]
VERIFIER_BROKEN = "verifier broken"
"""The name of the event of a run that ended because it could not judge."""
FEWEST_STEPS = 5
"""Joint steps below which nothing is said of how training goes."""


WHY_WRONG = {
    "verdict/reason/cut_off": "cut off at the length limit",
    "verdict/reason/no_answer": "without a marked answer",
    "verdict/reason/unreadable": "with an answer that could not be read",
}
"""Why responses are wrong, for people."""


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


def diagnose(run: RunFiles) -> list[Finding]:
    """All findings, errors first."""
    found = [finding for rule in RULES for finding in rule(run)]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.weight))


# ---------------------------------------------------------------------- what ended or stopped it


def _broken_verifier(run: RunFiles) -> Iterable[Finding]:
    broken = [event for event in run.alarms if event.get("name") == VERIFIER_BROKEN]
    if broken and not (run.path / "policy").exists():
        yield Finding("verifier broken", "error", str(broken[-1].get("message")), "mend what the message names")


def _ended(run: RunFiles) -> Iterable[Finding]:
    if diverged := [event for event in run.events if event.get("event") == EventName.DIVERGED]:
        yield Finding(
            "diverged",
            "error",
            str(diverged[-1].get("message")),
            "lower trainer.actor_lr and trainer.critic_lr by 3, or set guards.action=rollback; the minibatches that "
            f"were skipped lie in {run.path / 'skipped'}",
        )
    elif not (run.path / "policy").exists():
        done, steps = len(run.phase(Phase.TRAIN)), _setting(run, "trainer", "steps")
        yield Finding(
            "unfinished",
            "warning",
            f"{done} of {counted(int(steps or 0), 'joint step')} done, no policy/: it was stopped or killed, or runs",
            f"if it does not run, go on with: {command('resume', run.path)}",
        )


def _nothing_logged(run: RunFiles) -> Iterable[Finding]:
    if not run.metrics:
        yield Finding(
            "no step",
            "error",
            "metrics.jsonl has no line: the run ended before its first step",
            f"see how it ends with: {command('resume', run.path)}",
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


# ---------------------------------------------------------------------- what it learns from


def _outcomes(run: RunFiles) -> Iterable[Finding]:
    late = _late(run)
    accuracy = _mean(late, "accuracy")
    if accuracy is None:
        return
    if _by_score(run):  # what counts is the score; being right is a threshold of it
        yield from _scores(run, late, accuracy)
        return
    count = int(sum(line.get("verdict/judged") or 0 for line in late))
    if accuracy == 0:
        shares = {name: _mean(late, name) or 0 for name in WHY_WRONG}
        name, share = max(shares.items(), key=lambda item: item[1])
        advice = metric_called(name).plain_advice if share >= 0.5 else ""
        yield Finding(
            "nothing right",
            "error",
            f"none of the last {counted(count, 'response')} is right"
            + (f"; {share:.0%} of them {WHY_WRONG[name]}" if share >= 0.5 else ""),
            "; ".join(filter(None, [advice, "take easier problems, or a model that is right now and then"])),
        )
    elif accuracy == 1:
        yield Finding(
            "nothing wrong",
            "warning",
            f"all of the last {counted(count, 'response')} are right",
            "take harder problems",
        )
    elif (mixed := _mean(late, "groups/mixed_ratio")) is not None and mixed < 0.1 and _group_size(run) > 1:
        yield Finding(
            "groups agree",
            "warning",
            f"{mixed:.0%} of the groups have both right and wrong responses (accuracy {accuracy:.0%})",
            metric_called("groups/mixed_ratio").plain_advice,
        )


def _scores(run: RunFiles, late: Sequence[Record], accuracy: float) -> Iterable[Finding]:
    """Of a run whose outcomes are scores."""
    spread = _mean(late, "reward_std")
    if spread is not None and spread <= EQUAL:
        yield Finding(
            "equal scores",
            "error",
            f"all responses of a step have one score, {_mean(late, 'reward') or 0.0:.3g} on average",
            "look in the rollouts at what the reward functions (task.verifier) are given; take other problems, or "
            "another model",
        )
    elif accuracy in (0, 1) and _asks_what_is_right(run):
        share, change = ("none", "lower") if accuracy == 0 else ("each", "raise")
        yield Finding(
            f"{share} counts as right",
            "warning",
            f"{share} of the last responses counts as right, though their scores differ: the LM loss on right "
            "responses and dynamic sampling need some that are right and some that are not",
            f"{change} task.right_at, the score from which a response is right",
        )


def _verifier(run: RunFiles) -> Iterable[Finding]:
    late = _late(run, fewest=1)
    invalid = _mean(late, "verdict/invalid_ratio")
    if invalid:
        has_turns = _mean(late, "turns/mean") is not None
        yield Finding(
            "invalid verdicts",
            "error" if invalid > 0.05 else "warning",
            f"the verifier could not judge {invalid:.1%} of the responses"
            + (", or their environment failed" if has_turns else ""),
            "read `reason` in the rollouts: gold answers, time or memory limits, or the verifier's own errors"
            + (" or the environment's" if has_turns else ""),
        )


def _length(run: RunFiles) -> Iterable[Finding]:
    late = _late(run)
    cut = _mean(late, "completions/clipped_ratio")
    limit = _setting(run, "guards", "clipped_ratio_above", 0.5)
    if cut is not None and cut > min(0.3, limit):
        yield Finding(
            "cut off",
            "error" if cut > limit else "warning",
            f"{cut:.0%} of the responses reach the length limit",
            metric_called("completions/clipped_ratio").plain_advice,
        )
    steps = run.phase(Phase.TRAIN)
    lengths = _numbers(steps, "completions/mean_length")
    if len(lengths) >= 3 * FEWEST_STEPS:
        first, last = fmean(lengths[:FEWEST_STEPS]), fmean(lengths[-FEWEST_STEPS:])
        if last < first / 4 and (_mean(late, "accuracy") or 0) <= (_mean(steps[:FEWEST_STEPS], "accuracy") or 0):
            yield Finding(
                "responses shrink",
                "warning",
                f"mean length fell from {first:.0f} to {last:.0f} tokens and accuracy did not rise",
                "a reward that does not need reasoning is being learned: read the responses, check the verifier",
            )


# ---------------------------------------------------------------------- the policy


def _policy(run: RunFiles) -> Iterable[Finding]:
    late = _late(run)
    entropy = _mean(late, "entropy")
    floor = _setting(run, "guards", "entropy_below", 0.005)
    if entropy is not None and entropy < floor:
        yield Finding(
            "entropy collapse",
            "error",
            f"entropy is {entropy:.4f} nats a token: every prompt gets one response",
            metric_called("entropy").plain_advice or "lower trainer.actor_lr",
        )
    moves = _numbers(run.phase(Phase.TRAIN), "kl/update")
    limit = _setting(run, "guards", "kl_update_above", 0.2)
    if moves and max(moves) > limit:
        yield Finding(
            "a step too far",
            "error",
            f"one step moved the policy by {max(moves):.2g} nats a token (steps that train: near 0.001)",
            "lower trainer.actor_lr, or raise trainer.warmup_steps",
        )
    elif len(moves) >= FEWEST_STEPS and median(moves) < 1e-6:
        yield Finding(
            "the policy hardly moves",
            "error",
            f"half of the steps move it by less than {1e-6:g} nats a token",
            "raise trainer.actor_lr; or every advantage is 0: see groups/mixed_ratio and reward_std",
        )
    gap, most = _mean(late, "sampler/logp_gap_mean"), _setting(run, "guards", "logp_gap_above")
    if gap is not None and gap > (most if _is_number(most) else 0.1):
        yield Finding(
            "sampler disagrees",
            "error",
            f"sampler and trainer differ by {gap:.2g} nats a token",
            metric_called("sampler/logp_gap_mean").plain_advice,
        )


def _gradients(run: RunFiles) -> Iterable[Finding]:
    steps = run.phase(Phase.TRAIN)
    for network in ("policy", "critic"):
        skipped = sum(line.get(f"skipped/{network}") or 0 for line in steps)
        if skipped:
            yield Finding(
                f"skipped steps of the {network}",
                "error",
                f"{skipped:.0f} gradient steps were not taken: loss or gradient was not finite",
                f"lower its learning rate; the minibatches lie in {run.path / 'skipped'}",
            )
        norms = _numbers(steps, f"grad_norm/{network}")
        clip = _setting(run, "trainer", "max_grad_norm", 1.0)
        if len(norms) >= FEWEST_STEPS and (high := median(norms)) > 10 * clip:
            yield Finding(
                f"clipped gradients of the {network}",
                "warning",
                f"half of its gradient norms exceed {high:.3g}, and they are clipped to {clip:g}",
                "the size of its updates is not its loss's: lower its learning rate, or look at its outcomes",
            )


# ---------------------------------------------------------------------- the critic


def _critic(run: RunFiles) -> Iterable[Finding]:
    late = _late(run)
    residual = _mean(late, "value/residual_explained_variance")
    explained = residual if residual is not None else _mean(late, "value/explained_variance")
    if explained is not None and explained < 0:
        yield Finding(
            "critic worse than none",
            "error",
            f"the critic explains {explained:.0%} of the outcome's variance: less than a constant would",
            "pretrain it longer (trainer.pretraining_steps), change trainer.critic_lr, or take "
            "algorithm.credit.baseline=group"
            + ("" if is_of_trainer(run) else "; vapo critic says what any critic could explain here"),
        )
    elif explained is not None and explained < 0.02:
        yield Finding(
            "critic explains nothing",
            "warning",
            f"the critic explains {explained:.1%} of the outcome's variance",
            "pretrain it longer (trainer.pretraining_steps), or raise trainer.critic_lr"
            if is_of_trainer(run)
            else f"see what any critic could explain here: {command('critic', run.path)}",
        )
    spread, floor = _mean(late, "value/std"), _setting(run, "guards", "value_std_below", 1e-4)
    if spread is not None and spread < floor:
        yield Finding(
            "flat values", "error", f"values differ by {spread:.2g} only", metric_called("value/std").plain_advice
        )
    heads = _numbers(run.phase(Phase.TRAIN), "value/head_step")
    if len(heads) >= FEWEST_STEPS and not any(heads[-FEWEST_STEPS:]):
        yield Finding(
            "dead value head",
            "error",
            "the value head does not move",
            "raise trainer.critic_lr, or thaw the head",
        )
    ratio, most = _mean(late, "advantages/variance_ratio"), _setting(run, "guards", "variance_ratio_above", 1.2)
    if ratio is not None and ratio > most:
        yield Finding(
            "critic adds variance",
            "warning",
            f"with the critic the advantages vary {ratio:.2f} times as much as with the group's mean",
            metric_called("advantages/variance_ratio").plain_advice,
        )


def _pretraining(run: RunFiles) -> Iterable[Finding]:
    wanted = _setting(run, "trainer", "pretraining_ready", 0.1)
    for event in run.events:
        reached = event.get("explained_variance")
        if event.get("event") == EventName.PRETRAINING_FINISHED and _is_number(reached) and reached < wanted:
            yield Finding(
                "critic was not ready",
                "warning",
                f"value pretraining ended at a held-out explained variance of {reached:.2f}, wanted {wanted:g}",
                "raise trainer.pretraining_steps, trainer.pretraining_passes or trainer.pretraining_lr",
            )


# ---------------------------------------------------------------------- what came of it


def _result(run: RunFiles) -> Iterable[Finding]:
    # one prompt has no interval, and nothing can be said
    scores = [e for e in run.evaluations if all(_is_number(e.get(name)) for name in ("avg", "low", "high"))]
    if len(scores) < 2:
        return
    first, last, best = scores[0], scores[-1], max(scores, key=lambda line: line["avg"])
    if last["avg"] < first["low"]:
        yield Finding(
            "worse than before",
            "error",
            f"held-out accuracy fell from {first['avg']:.1%} to {last['avg']:.1%}",
            "see the findings above; the checkpoint of the best evaluation is the one to keep",
        )
    elif last["avg"] < best["low"]:
        yield Finding(
            "past its best",
            "warning",
            f"held-out accuracy was {best['avg']:.1%} at step {best['step']} and is {last['avg']:.1%} now",
            "train for fewer steps, or lower trainer.actor_lr",
        )
    elif last["avg"] <= first["high"] and len(run.phase(Phase.TRAIN)) >= 20:
        yield Finding(
            "nothing learned",
            "warning",
            f"held-out accuracy is {last['avg']:.1%} after {counted(len(run.phase(Phase.TRAIN)), 'step')}, and the "
            f"{first['avg']:.1%} before has an interval up to {first['high']:.1%}",
            "raise trainer.actor_lr by 3, train longer, or see the findings above",
        )


def _time(run: RunFiles) -> Iterable[Finding]:
    late = _late(run)
    whole = _mean(late, "step_time")
    parts = {part: _mean(late, f"time/{part}") for part in ("verify", "rollout_wait")}
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
    _verifier,
    _outcomes,
    _length,
    _policy,
    _gradients,
    _pretraining,
    _critic,
    _result,
    _time,
)


def is_of_trainer(run: RunFiles) -> bool:
    """Whether a `VAPOTrainer` made the run: no command knows its rows and its reward functions."""
    return str(_setting(run, "task", "name", "")).startswith(PREFIX)


def _late(run: RunFiles, fewest: int = FEWEST_STEPS) -> list[Record]:
    """The last third of the joint steps; none while there are fewer than `fewest`."""
    steps = run.phase(Phase.TRAIN)
    return steps[-max(fewest, len(steps) // 3) :] if len(steps) >= fewest else []


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _numbers(lines, name)
    return fmean(values) if values else None


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if _is_number(line.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _setting(run: RunFiles, section: str, key: str, default: Any = None) -> Any:
    found = run.config.get(section)
    value = found.get(key, default) if isinstance(found, dict) else default
    return default if value is None else value


def _by_score(run: RunFiles) -> bool:
    reward = _setting(run, "algorithm", "reward", {})
    return isinstance(reward, dict) and reward.get("by") == "score"


def _asks_what_is_right(run: RunFiles) -> bool:
    """Whether the method learns from what is right, besides the outcome: the LM loss, and dynamic sampling."""
    method = run.method.get("algorithm") or {}
    return bool(method.get("positive_lm") or (method.get("sampling") or {}).get("refill_rounds"))


def _group_size(run: RunFiles) -> int:
    return int(_setting(run, "trainer", "group_size", 2) or 2)
