"""The table of all metrics: name, meaning, unit, healthy range, and advice.

Curves, the live view, comparisons and alarms use its titles, units and advice. This module also prints
`docs/metrics.md`:

    python -m vapo.metrics docs/metrics.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path


class Phase(StrEnum):
    """The phase of a run, and the value of `phase` in each line of metrics.jsonl (which has no line for DONE)."""

    PRETRAIN = "pretrain"
    TRAIN = "train"
    DONE = "done"

    @property
    def words(self) -> str:
        """The phase's name for people.

        >>> Phase.PRETRAIN.words
        'value pretraining'
        """
        return {Phase.PRETRAIN: "value pretraining", Phase.TRAIN: "training", Phase.DONE: "done"}[self]


class EvaluationLabel(StrEnum):
    """The kind of an evaluation in evaluations.jsonl."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class EventName(StrEnum):
    """The kind of an event in events.jsonl."""

    ALARM = "alarm"
    CRITIC_LOADED = "critic loaded"
    PRETRAINING_FINISHED = "pretraining finished"
    RESUMED = "resumed"
    ROLLED_BACK = "rolled back"
    DIVERGED = "diverged"


BOTH = (Phase.PRETRAIN, Phase.TRAIN)
TRAIN = (Phase.TRAIN,)
PRETRAIN = (Phase.PRETRAIN,)


@dataclass(frozen=True)
class Metric:
    """One number of metrics.jsonl. A name that ends in `/*` is a family, numbered from 0."""

    name: str
    meaning: str
    unit: str = ""
    healthy: str = ""
    advice: str = ""
    """What to do outside the healthy range."""
    title: str = ""
    """The title of its figure."""
    short: str = ""
    """A short name, for example for the terminal."""
    phases: tuple[Phase, ...] = TRAIN
    where: str = ""
    """The methods or settings that write it; empty for all."""

    @property
    def heading(self) -> str:
        """Title and unit.

        >>> METRICS["entropy"].heading, METRICS["accuracy"].heading
        ('Entropy (nats per token)', 'Accuracy')
        """
        title = self.title or self.name
        return f"{title} ({self.unit})" if self.unit and self.unit != SHARE else title

    @property
    def plain_advice(self) -> str:
        """The advice without Markdown, for messages.

        >>> METRICS["verdict/reason/cut_off"].plain_advice
        'raise rollout.max_response_tokens'
        """
        return self.advice.replace("`", "")


@dataclass(frozen=True)
class Section:
    """The rows under one heading of the page."""

    heading: str
    rows: tuple[Metric, ...]
    about: str = ""


SHARE = "share"
"""The unit of a number from 0 to 1 that figures show in percent."""
CRITIC = "methods with a critic"
RESIDUAL = "`algorithm.credit.baseline: group`"
GROUPED_CRITIC = "methods with a critic and several responses to a prompt"
KL = "runs with a reference: `algorithm.kl.coef` > 0"
SHOW_THE_FORM = "show the model the form of an answer (in the prompt: `task.template`, or by fine-tuning on examples)"

_SAMPLED = (
    Metric(
        "reward", "mean outcome: the verdict's reward plus length shaping", "", "rises",
        "flat: check whether any answer is right (`accuracy`)", title="Reward", short="reward", phases=BOTH,
    ),
    Metric(
        "reward_std", "its standard deviation over the step's responses", "reward", "well above 0",
        "0: all rewards are equal; use easier or harder prompts", phases=BOTH,
    ),
    Metric(
        "accuracy", "share of valid verdicts that are right, training prompts", SHARE, "rises",
        "compare with held-out `avg` in `evaluations.jsonl`", title="Accuracy", short="accuracy", phases=BOTH,
    ),
    Metric(
        "completions/mean_length", "mean length of the responses, stop token included", "tokens", "changes slowly",
        "falls at once while accuracy falls: the critic misjudges early tokens (VC-PPO §2); pretrain it",
        title="Response length", short="length", phases=BOTH,
    ),
    Metric("completions/min_length", "length of the shortest response", "tokens", phases=BOTH),
    Metric("completions/max_length", "length of the longest response", "tokens", phases=BOTH),
    Metric("completions/mean_length_right", "mean length of the right responses", "tokens", phases=BOTH),
    Metric(
        "completions/clipped_ratio", "share cut off at the length limit (the sampler's own flag)", SHARE, "below 0.1",
        "the verifier judges responses without their ends: raise `rollout.max_response_tokens`, take a preset that "
        "punishes length (dapo), or set `algorithm.truncated: drop-from-policy`",
        title="Cut off at the limit", short="cut off", phases=BOTH,
    ),
    Metric("verdict/judged", "responses with a valid verdict, right or wrong", "responses", phases=BOTH),
    Metric(
        "verdict/reason/wrong_answer", "share of them with a wrong answer. With "
        "`accuracy` and the next three it adds up to 1", SHARE, "falls", phases=BOTH,
    ),
    Metric(
        "verdict/reason/no_answer", "share of them without a marked answer", SHARE, "falls",
        SHOW_THE_FORM, phases=BOTH,
    ),
    Metric(
        "verdict/reason/unreadable", "share of them with an answer that could not be read", SHARE, "falls",
        SHOW_THE_FORM, phases=BOTH,
    ),
    Metric(
        "verdict/reason/unspecified", "share of them that are wrong without a reason given", SHARE, "",
        "check in the rollouts whether the verifier accepts any answer", phases=BOTH,
    ),
    Metric(
        "verdict/reason/cut_off", "share of them that are wrong and were cut off at the length limit, regardless of "
        "other reasons", SHARE, "below 0.1", "raise `rollout.max_response_tokens`", phases=BOTH,
    ),
    Metric(
        "verdict/invalid_ratio", "share of responses the verifier could not judge", SHARE, "0",
        "read `reason` in the rollouts; above `trainer.max_invalid_ratio` the run stops (code 4)", phases=BOTH,
    ),
    Metric(
        "sampling/kept_ratio", "share of the drawn responses that dynamic sampling kept; 1 where it is off", SHARE,
        "above 0.3", "use easier or harder prompts, or raise `algorithm.sampling.refill_rounds`",
    ),
    Metric(
        "groups/mixed_ratio", "share of prompts with both right and wrong responses", SHARE, "above 0.3",
        "group methods learn from mixed groups only: use dynamic sampling or other prompts",
        title="Groups with right and wrong", phases=BOTH,
    ),
    Metric(
        "num_samples", "responses sampled for training so far, value pretraining and dropped groups included; the "
        "x axis for comparing methods by cost", "responses", short="samples", phases=BOTH,
    ),
    Metric(
        "groups/alone_ratio", "share of the learned responses without another learned response to their prompt: the "
        "mean of the step takes the place of the group's", SHARE, "0",
        "the verifier could not judge the others, or they were cut off: see `verdict/invalid_ratio`",
        where="methods with several responses to a prompt",
    ),
    Metric(
        "policy/learned_ratio", "share of the learned responses that the policy learns from, too: those that were not "
        "cut off", SHARE, "above 0.5",
        "the policy learns from few responses: raise `rollout.max_response_tokens`, or set `algorithm.truncated: zero`",
        where="`algorithm.truncated: drop-from-policy`",
    ),
    Metric(
        "outcomes/between_share", "share of the outcomes' variance that lies between prompts: what a baseline explains "
        "that knows the prompt only. Noise alone gives about 1 / group size", SHARE, "",
        "", title="Variance between prompts", where="methods with several responses to a prompt",
    ),
    Metric("num_tokens", "their tokens", "tokens", short="tokens", phases=BOTH),
)  # fmt: skip

_POLICY = (
    Metric(
        "entropy", "mean entropy of the sampled distribution", "nats per token", "falls slowly",
        "near 0 the policy writes almost the same response every time: raise `algorithm.clip.high` or "
        "lower `trainer.actor_lr`", title="Entropy", short="entropy",
    ),
    Metric("loss/policy", "the clipped surrogate, reduced as the method says", "", "around 0, noisy"),
    Metric(
        "loss/positive_lm", "mean -log π over the tokens of right responses (VAPO eq. 9), before μ; 0 if none is "
        "right. Written for every method, also where μ is 0", "nats per token", "falls", title="Positive LM loss",
    ),
    Metric("loss/kl", "the KL term to the reference, before its coefficient", "nats per token", "small", where=KL),
    Metric(
        "kl", "mean log π - log π_ref on the samples (k1)", "nats per token", "grows slowly",
        title="KL to the reference", where=KL,
    ),
    Metric(
        "kl/update", "how far the step's updates moved π from the policy that sampled (k3), mean over its gradient "
        "steps", "nats per token", "below 0.05; above `guards.kl_update_above` an alarm at once",
        "a few steps of this size can destroy the model: lower `trainer.actor_lr` or "
        "use fewer minibatches",
    ),
    Metric(
        "clip_ratio/high_mean", "weight of the tokens whose gradient the trust region's upper bound stops: above 1 + "
        "ε_high with A > 0", SHARE, "below 0.05",
        "lower `trainer.actor_lr`, take fewer minibatches", title="Clipped tokens", short="above 1 + ε high",
    ),
    Metric(
        "clip_ratio/low_mean", "weight of the tokens whose gradient the lower bound stops: below 1 - ε_low with A < 0; "
        "a dual clip also stops those above c with A < 0", SHARE, "below 0.05",
        "lower `trainer.actor_lr`, take fewer minibatches", title="Clipped tokens", short="below 1 − ε low",
    ),
    Metric(
        "grad_norm/policy", "gradient norm before clipping, mean over the step's gradient steps", "", "steady",
        "a spike comes from one bad batch or from too high a learning rate: lower `trainer.actor_lr`",
        title="Policy gradient norm",
    ),
    Metric("lr/actor", "the policy's learning rate in this step"),
    Metric("gradient_steps", "policy gradient steps so far: the paper's x axis", "gradient steps"),
    Metric(
        "skipped/policy", "gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)",
    ),
    Metric(
        "sampler/logp_gap_max", "largest difference of the sampler's and the trainer's log-probability of a token",
        "nats", "below 1e-4 in float32", "the engine runs other weights or another precision",
    ),
    Metric(
        "sampler/logp_gap_mean", "the mean of that difference", "nats", "below 1e-4 in float32",
        "the engine runs other weights or another precision than the trainer: its samples are not the policy's",
    ),
    Metric(
        "sampler/removed_ratio", "share of the tokens whose weight the sampler correction cut or set to 0", SHARE,
        "below 0.01", "engine and trainer disagree about many tokens: compare their precision, or the "
        "staleness of its rollouts", where="`algorithm.sampler` other than none",
    ),
)  # fmt: skip

_CRITIC = (
    Metric(
        "value/loss", "½(V - target)², mean over the step's gradient steps", "", "falls, then flat",
        title="Value loss", short="value loss", phases=BOTH, where=CRITIC,
    ),
    Metric(
        "value/explained_variance", "1 - Var(R - V)/Var(R)", "", "above 0, rising",
        "below 0 a constant predicts outcomes better, so advantages are noise: pretrain longer "
        "(`trainer.pretraining_steps`) or lower `trainer.critic_lr`",
        title="Explained variance", short="EV", where=CRITIC,
    ),
    Metric(
        "value/residual_explained_variance", "explained variance of what the mean outcome of the group's other "
        "responses leaves, by the critic alone", "", "above 0, rising",
        "below 0 the critic adds noise to the group's mean: lower `trainer.critic_lr`",
        title="Explained variance beyond the group", where=RESIDUAL,
    ),
    Metric("value/mean", "mean V", "reward", where=CRITIC),
    Metric(
        "value/std", "standard deviation of the critic's answers over the tokens", "reward",
        "above `guards.value_std_below`",
        "the critic says the same of every token: raise `trainer.critic_lr`, pretrain it, or see in "
        "`value/head_step` whether its head learns", where=CRITIC,
    ),
    Metric(
        "value/head_step", "how far a gradient step moved the weights of the value head (norm), mean over the step's "
        "gradient steps", "", "above 0",
        "the head gets no gradient while the rest of the critic does: start the critic from a base model, or look at "
        "how its head is loaded", phases=BOTH, where=CRITIC,
    ),
    Metric(
        "value/within_group_auc", "how often the critic's mean answer ranks a right response above a wrong one to the "
        "same prompt", "", "above 0.5, rising", "near 0.5 the critic adds nothing to the group's mean",
        title="AUC within groups", where=GROUPED_CRITIC,
    ),
    Metric(
        "advantages/variance_ratio", "Var(R - V) / Var(R - b), b the mean outcome of the group's other responses: the "
        "variance of the advantages with the critic against with the group alone", "",
        "below 1; above `guards.variance_ratio_above` an alarm",
        "the critic makes advantages noisier than the group's mean would: set `algorithm.credit.baseline: group`, so "
        "that it learns what the mean leaves, or pretrain it longer", title="Advantage variance with the critic",
        where=GROUPED_CRITIC,
    ),
    Metric(
        "credit/critic_share", "the critic's share of the baseline: ρ of a fitted one, 0 or 1 of a gated one", SHARE,
        "above 0", "at 0 the critic costs time and adds nothing: pretrain it, or take a method without one",
        where="`algorithm.credit.baseline: fitted` or `gated`",
    ),
    Metric(
        "value/bias", "mean V - R; a constant offset is invisible to explained variance", "reward", "near 0",
        where=CRITIC,
    ),
    Metric(
        "value/explained_variance_by_position/*", "explained variance by tenths of the response", "",
        "rises with position", "low at the end: the critic cannot read the outcome from the text", where=CRITIC,
    ),
    Metric(
        "value/bias_by_position/*", "mean V - R by tenths of the response", "reward", "near 0",
        "negative early: bias of a reward model, which value pretraining removes",
        title="Value bias by position in the response", where=CRITIC,
    ),
    Metric(
        "grad_norm/critic", "gradient norm before clipping, mean over the step's gradient steps", "", "steady",
        "a spike comes from one bad batch or from too high a learning rate: lower `trainer.critic_lr`",
        phases=BOTH, where=CRITIC,
    ),
    Metric("lr/critic", "the critic's learning rate in this step", phases=BOTH, where=CRITIC),
    Metric(
        "skipped/critic", "gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)", where=CRITIC,
    ),
    Metric(
        "gae/lambda_mean", "mean λ of the policy's advantages over the step's responses", "", "above 0.95",
        "raise `algorithm.alpha`; the paper's 0.05 is for thousands of tokens (1.5 lets the share k = 0.51 of the "
        "outcome reach the first token); with a share λ raise `algorithm.credit.policy_lambda.k`",
        title="Effective λ", where=CRITIC,
    ),
    Metric(
        "gae/lambda_median", "its median", "", "above 0.95",
        "raise `algorithm.alpha`; the paper's 0.05 is for thousands of tokens (1.5 lets the share k = 0.51 of the "
        "outcome reach the first token); with a share λ raise `algorithm.credit.policy_lambda.k`", where=CRITIC,
    ),
    Metric("gae/lambda_min", "its minimum", where=CRITIC),
    Metric("advantages/mean", "mean advantage of the tokens learned from; every method writes it"),
    Metric("advantages/std", "their standard deviation"),
)  # fmt: skip

_PRETRAINING = (
    Metric(
        "pretrain/value_loss", "`value/loss` of the pretraining step", "", "falls", title="Value loss",
        short="value loss", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/explained_variance", "explained variance on responses to held-out prompts, after the step's update",
        "", "above `trainer.pretraining_ready`",
        "more steps or passes, a higher `trainer.pretraining_lr`, or prompts whose outcome can be predicted",
        title="Explained variance", short="EV", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/residual_explained_variance", "`value/residual_explained_variance` on them", "", "above 0",
        phases=PRETRAIN, where=RESIDUAL,
    ),
    Metric("pretrain/mean", "mean V on them", "reward", phases=PRETRAIN),
    Metric("pretrain/std", "standard deviation of the critic's answers on them", "reward", "above 0", phases=PRETRAIN),
    Metric("pretrain/bias", "mean V - R on them", "reward", "near 0", phases=PRETRAIN),
    Metric(
        "pretrain/explained_variance_by_position/*", "explained variance on them by tenths of the response", "",
        "rises with position", phases=PRETRAIN,
    ),
    Metric(
        "pretrain/bias_by_position/*", "mean V - R on them by tenths of the response", "reward", "near 0",
        phases=PRETRAIN,
    ),
    Metric(
        "pretrain/end_explained_variance", "explained variance of the value after the last token", "", "near 1",
        "more steps: a reward model must judge finished text before a critic starts from it", phases=PRETRAIN,
        where="reward models: `trainer.pretraining_at: end`",
    ),
    Metric(
        "pretrain/gradient_steps", "critic gradient steps of this pretraining step", "gradient steps",
        "grows until replays fill `trainer.pretraining_passes`", phases=PRETRAIN,
    ),
    Metric(
        "skipped", "critic gradient steps thrown away because loss or gradient was not finite", "gradient steps", "0",
        "three steps in a row stop the run (code 3)", phases=PRETRAIN,
    ),
)  # fmt: skip

_TIME = (
    Metric("step_time", "duration of the step", "s", title="Time per step", phases=BOTH),
    Metric("time/rollout", "sampling", "s", short="rollout", phases=BOTH),
    Metric("time/verify", "judging", "s", short="verify", phases=BOTH),
    Metric("time/score", "log-probabilities, values and credit", "s", short="score"),
    Metric("time/update", "gradient steps", "s", short="update", phases=BOTH),
    Metric(
        "time/evaluate", "the held-out check of value pretraining. The time of other evaluations is in "
        "`evaluations.jsonl`, and not in the time of a step", "s", phases=PRETRAIN,
    ),
    Metric(
        "throughput/rollout_tokens_per_s", "response tokens sampled per second of sampling", "tokens/s",
        short="tok/s", phases=BOTH,
    ),
    Metric(
        "throughput/update_tokens_per_s", "response tokens learned from per second of gradient steps", "tokens/s",
        phases=BOTH,
    ),
)  # fmt: skip

SECTIONS = (
    Section(
        "What was sampled",
        _SAMPLED,
        "With dynamic sampling, these numbers include the dropped groups. Responses with an invalid verdict\n"
        "count in `verdict/invalid_ratio` only.",
    ),
    Section(
        "Policy",
        _POLICY,
        "Token means are over the trainable tokens. A diagnostic that overflows is `null`\n"
        "and does not cancel the gradient step.",
    ),
    Section(
        "Critic",
        _CRITIC,
        "Always measured against the Monte-Carlo outcome R, before the step's update, and not\n"
        "against the critic's bootstrap target, so that methods with different λ can be compared.",
    ),
    Section(
        "Value pretraining", _PRETRAINING, "The critic is never trained on the held-out prompts of its evaluation."
    ),
    Section(
        "Time", _TIME, "Time and throughput are the only metrics that differ between a run and its exact repetition."
    ),
)

METRICS: dict[str, Metric] = {row.name: row for section in SECTIONS for row in section.rows}
"""All metrics by name."""

PLACE = {
    "phase": "`pretrain` (value pretraining) or `train` (the joint loop)",
    "step": "counts from 1 within the phase",
}
"""The entries of a line of metrics.jsonl that identify the step."""

EVALUATION = {
    "step": "the joint step after which it was made",
    "label": "`before`, `during` or `after` training",
    "k": "samples per prompt",
    "prompts": "how many held-out prompts",
    "set": "a hash of prompts, answers, verifier and decoding; scores with different ones cannot be compared",
    "avg": "avg@k: mean over prompts of the share of right samples",
    "low": "lower end of its 95 % interval over prompts",
    "high": "upper end",
    "pass": "unbiased pass@j by j",
    "maj": "accuracy of the majority vote; null if the task has no final answers",
    "intervals": "95 % intervals over prompts of `pass@j` and `maj`",
    "mean_length": "mean response tokens",
    "clipped_ratio": "share cut off at the length limit",
    "invalid_ratio": "share with an invalid verdict",
    "verdicts": "valid responses, right ones, and wrong ones by reason",
    "right": "right samples of each prompt, in order",
    "valid": "valid samples of each prompt, in order",
    "time/evaluate": "seconds it took",
}
"""The entries of a line of evaluations.jsonl."""

EVENTS = {
    EventName.ALARM: "`message`: the problem; `name` for alarms of `guards` and of equal outcomes",
    EventName.CRITIC_LOADED: "`origin`: the source of the critic's weights",
    EventName.PRETRAINING_FINISHED: "`steps`, and the held-out `explained_variance` reached",
    EventName.RESUMED: "resumed after `step`; `changes` lists the changed settings: `key: old -> new`",
    EventName.ROLLED_BACK: "an alarm (`reason`) rolled the run back: `from_step`, `to_step`, `rollbacks` so far",
    EventName.DIVERGED: "`message`: the run stopped with exit code 3",
}
"""The entries of events.jsonl by kind."""


def metric_called(name: str) -> Metric:
    """The row of a metric or of a member of a family, with the given name. Raises KeyError for an unknown name.

    >>> metric_called("value/bias_by_position/3").unit
    'reward'
    """
    family = re.sub(r"/\d+$", "/*", name)
    if family not in METRICS:
        raise KeyError(f"{name} is not in the table of vapo.metrics.")
    return replace(METRICS[family], name=name)


def metrics_page() -> str:
    """The text of `docs/metrics.md`."""
    parts = [
        "# The metrics, one by one",
        "Printed from [`vapo.metrics`](../src/vapo/metrics.py) by `python -m vapo.metrics docs/metrics.md`.",
        "`metrics.jsonl` has one line a step, each step exactly once. A number that is not defined (an explained\n"
        "variance when all outcomes are equal) is `null`. Names follow TRL where the meaning is the same. A name that\n"
        "ends in `/*` is a family: `/0` to `/9` for tenths of a response.",
        _table(((f"`{key}`", meaning) for key, meaning in PLACE.items()), ("name", "meaning")),
    ]
    for section in SECTIONS:
        parts += [f"## {section.heading}", section.about, _table(map(_row, section.rows), _HEADINGS)]
    parts += [
        "## `evaluations.jsonl`",
        "One line an evaluation. The samples' seeds do not depend on the step: each evaluation meets the same luck.",
        _table(((f"`{key}`", meaning) for key, meaning in EVALUATION.items()), ("name", "meaning")),
        "## `events.jsonl`",
        "One line an event, with the time of day. `lasting` is true for events about the process: resumes, and alarms\n"
        "raised before the first step. They stay in the log when a resume or a rollback cuts it back.",
        _table(((f"`{name}`", meaning) for name, meaning in EVENTS.items()), ("event", "entries")),
        "`skipped/` holds the minibatches of gradient steps that were skipped because of numbers that are not finite;\n"
        "`stacks.txt` and `watchdog.log` what the watchdog saw ([durability](durability.md)).",
    ]
    return "\n\n".join(parts) + "\n"


_HEADINGS = ("name", "meaning", "unit", "healthy", "what to do otherwise")


def _row(metric: Metric) -> tuple[str, ...]:
    about = [metric.meaning]
    if metric.where:
        about.append(f"only {metric.where}")
    return f"`{metric.name}`", "; ".join(about), metric.unit, metric.healthy, metric.advice


def _table(rows: Iterable[tuple[str, ...]], headings: tuple[str, ...]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell or "–" for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(metrics_page(), encoding="utf-8")
    else:
        print(metrics_page(), end="")
