"""What is wrong with the outcomes, responses and policy of a run, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median

from vapo.errors import counted
from vapo.metrics import Phase, metric_called
from vapo.reports.findings import (
    FEWEST_STEPS,
    Finding,
    asks_what_is_right,
    by_score,
    group_size,
    is_number,
    late_steps,
    mean_of,
    numbers_of,
    setting_of,
)
from vapo.reports.runfiles import Record, RunFiles
from vapo.trainer.outcomes import EQUAL

WHY_WRONG = {
    "verdict/reason/cut_off": "cut off at the length limit",
    "verdict/reason/no_answer": "without a marked answer",
    "verdict/reason/unreadable": "with an answer that could not be read",
}
"""Why responses are wrong, for people."""


def outcomes(run: RunFiles) -> Iterable[Finding]:
    """Outcomes from which nothing can be learned, because all of a step or a group are equal."""
    late = late_steps(run)
    accuracy = mean_of(late, "accuracy")
    if accuracy is None:
        return
    if by_score(run):  # what counts is the score; being right is a threshold of it
        yield from _scores(run, late, accuracy)
        return
    count = int(sum(line.get("verdict/judged") or 0 for line in late))
    if accuracy == 0:
        shares = {name: mean_of(late, name) or 0 for name in WHY_WRONG}
        often = {name: share for name, share in shares.items() if share >= 0.5}
        reasons = [f"{share:.0%} of them {WHY_WRONG[name]}" for name, share in often.items()]
        advice = [metric_called(name).plain_advice for name in often]
        yield Finding(
            "nothing right",
            "error",
            "; ".join([f"none of the last {counted(count, 'response')} is right", *reasons]),
            "; ".join([*advice, "take easier problems, or a model that is right now and then"]),
        )
    elif accuracy == 1:
        yield Finding(
            "nothing wrong",
            "warning",
            f"all of the last {counted(count, 'response')} are right",
            "take harder problems",
        )
    elif (mixed := mean_of(late, "groups/mixed_ratio")) is not None and mixed < 0.1 and group_size(run) > 1:
        yield Finding(
            "groups agree",
            "warning",
            f"{mixed:.0%} of the groups have both right and wrong responses (accuracy {accuracy:.0%})",
            metric_called("groups/mixed_ratio").plain_advice,
        )


def _scores(run: RunFiles, late: Sequence[Record], accuracy: float) -> Iterable[Finding]:
    """Of a run whose outcomes are scores."""
    spread = mean_of(late, "reward_std")
    if spread is not None and spread <= EQUAL:
        yield Finding(
            "equal scores",
            "error",
            f"all responses of a step have one score, {mean_of(late, 'reward') or 0.0:.3g} on average",
            "look in the rollouts at what the reward functions (task.verifier) are given; take other problems, or "
            "another model",
        )
    elif accuracy in (0, 1) and asks_what_is_right(run):
        share, change = ("none", "lower") if accuracy == 0 else ("each", "raise")
        yield Finding(
            f"{share} counts as right",
            "warning",
            f"{share} of the last responses counts as right, though their scores differ: the LM loss on right "
            "responses and dynamic sampling need some that are right and some that are not",
            f"{change} task.right_at, the score from which a response is right",
        )


def verifier(run: RunFiles) -> Iterable[Finding]:
    """Responses that could not be judged."""
    late = late_steps(run, fewest=1)
    invalid = mean_of(late, "verdict/invalid_ratio")
    if invalid:
        has_turns = mean_of(late, "turns/mean") is not None
        yield Finding(
            "invalid verdicts",
            "error" if invalid > 0.05 else "warning",
            f"the verifier could not judge {invalid:.1%} of the responses"
            + (", or their environment failed" if has_turns else ""),
            "read `reason` in the rollouts: gold answers, time or memory limits, or the verifier's own errors"
            + (" or the environment's" if has_turns else ""),
        )


def length(run: RunFiles) -> Iterable[Finding]:
    """Responses that are cut off, or that shrink without becoming right."""
    late = late_steps(run)
    cut = mean_of(late, "completions/clipped_ratio")
    limit = setting_of(run, "guards", "clipped_ratio_above", 0.5)
    if cut is not None and cut > min(0.3, limit):
        yield Finding(
            "cut off",
            "error" if cut > limit else "warning",
            f"{cut:.0%} of the responses reach the length limit",
            metric_called("completions/clipped_ratio").plain_advice,
        )
    steps = run.phase(Phase.TRAIN)
    lengths = numbers_of(steps, "completions/mean_length")
    if len(lengths) >= 3 * FEWEST_STEPS:
        first, last = fmean(lengths[:FEWEST_STEPS]), fmean(lengths[-FEWEST_STEPS:])
        if last < first / 4 and (mean_of(late, "accuracy") or 0) <= (mean_of(steps[:FEWEST_STEPS], "accuracy") or 0):
            yield Finding(
                "responses shrink",
                "warning",
                f"mean length fell from {first:.0f} to {last:.0f} tokens and accuracy did not rise",
                "a reward that does not need reasoning is being learned: read the responses, check the verifier",
            )


def policy(run: RunFiles) -> Iterable[Finding]:
    """A policy that collapses, jumps or stands still, or whose sampler computes other probabilities."""
    late = late_steps(run)
    entropy = mean_of(late, "entropy")
    floor = setting_of(run, "guards", "entropy_below", 0.005)
    if entropy is not None and entropy < floor:
        yield Finding(
            "entropy collapse",
            "error",
            f"entropy is {entropy:.4f} nats a token: every prompt gets one response",
            metric_called("entropy").plain_advice or "lower trainer.actor_lr",
        )
    moves = numbers_of(run.phase(Phase.TRAIN), "kl/update")
    limit = setting_of(run, "guards", "kl_update_above", 0.2)
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
    gap, most = mean_of(late, "sampler/logp_gap_mean"), setting_of(run, "guards", "logp_gap_above")
    if gap is not None and gap > (most if is_number(most) else 0.1):
        yield Finding(
            "sampler disagrees",
            "error",
            f"sampler and trainer differ by {gap:.2g} nats a token",
            metric_called("sampler/logp_gap_mean").plain_advice,
        )


def gradients(run: RunFiles) -> Iterable[Finding]:
    """Gradient steps that were skipped, or clipped to a tenth."""
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
        norms = numbers_of(steps, f"grad_norm/{network}")
        clip = setting_of(run, "trainer", "max_grad_norm", 1.0)
        if len(norms) >= FEWEST_STEPS and (high := median(norms)) > 10 * clip:
            yield Finding(
                f"clipped gradients of the {network}",
                "warning",
                f"half of its gradient norms exceed {high:.3g}, and they are clipped to {clip:g}",
                "the size of its updates is not its loss's: lower its learning rate, or look at its outcomes",
            )
