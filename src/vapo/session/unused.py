"""Settings that were chosen and that the run does not use: one table of rules, one note or error for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vapo.algo.method import Algorithm, Gae, LengthAdaptive, Share
from vapo.session.schema import Sections
from vapo.tasks.catalog import DATA_TASKS
from vapo.tasks.problem_options import ProblemOptions
from vapo.tasks.registry import BUILTIN

Condition = Callable[[Sections, Algorithm], bool]


@dataclass(frozen=True)
class Rule:
    """Settings that have no effect while the condition holds, and the reason for people."""

    keys: tuple[str, ...]
    """Names of settings; one that ends with a dot, or is a section, stands for all below it."""
    unused: Condition
    why: str

    def names(self, key: str) -> bool:
        """Whether the rule is about the setting."""
        return any(
            key == name or key.startswith(name if name.endswith((".", "_")) else f"{name}.") for name in self.keys
        )


def _no_adapters(sections: Sections, algorithm: Algorithm) -> bool:
    return not sections.model.policy_lora and not (sections.model.critic_lora and algorithm.has_critic)


def _fixed_lambda(sections: Sections, algorithm: Algorithm) -> bool:
    credit = algorithm.credit
    return not (isinstance(credit, Gae) and isinstance(credit.policy_lambda, LengthAdaptive))


def _share_lambda(sections: Sections, algorithm: Algorithm) -> bool:
    credit = algorithm.credit
    return isinstance(credit, Gae) and isinstance(credit.policy_lambda, Share)


def _options(sections: Sections) -> dict[str, Any]:
    """The options of a data task over its own; empty for other tasks."""
    name = sections.task.name
    return {**DATA_TASKS[name][1], **sections.task.options} if name in DATA_TASKS else {}


def _is_file(source: Any) -> bool:
    return isinstance(source, str) and Path(source).is_file()


RULES = (
    Rule(
        ("trainer.group_size",),
        lambda s, a: a.sampling.per_prompt == 1 and s.trainer.group_size != 1,
        "it draws one response to each prompt",
    ),
    Rule(
        (
            "trainer.critic_lr",
            "model.critic",
            "model.critic_lora",
            "model.critic_kind",
            "model.side_layers",
            "model.side_share",
            "model.side_attention",
            "guards.explained_variance_below",
            "guards.value_std_below",
            "guards.variance_ratio_above",
        ),
        lambda s, a: not a.has_critic,
        "it has no critic",
    ),
    Rule(
        ("guards.variance_ratio_above",),
        lambda s, a: a.sampling.per_prompt == 1,
        "it draws one response to each prompt, so there is no mean of the others to compare with",
    ),
    Rule(("trainer.pretraining_",), lambda s, a: not a.pretrains, "it does no value pretraining"),
    Rule(("algorithm.k",), lambda s, a: not a.has_critic, "it has no critic, and so no lambda"),
    Rule(("algorithm.alpha",), _share_lambda, "its lambda is by share: set algorithm.k"),
    Rule(("algorithm.alpha",), _fixed_lambda, "its lambda is not length-adaptive"),
    Rule(
        ("algorithm.kl.estimator", "algorithm.kl.refresh_every"),
        lambda s, a: a.kl.coef == 0,
        "algorithm.kl.coef is 0, so there is no KL term",
    ),
    Rule(
        ("model.side_share", "model.side_attention"),
        lambda s, a: s.model.critic_kind != "side",
        "the critic is no side critic",
    ),
    Rule(("model.lora_alpha",), _no_adapters, "no network has adapters: set model.policy_lora or model.critic_lora"),
    Rule(
        (
            "trainer.actor_lr",
            "trainer.warmup_steps",
            "algorithm.alpha",
            "algorithm.k",
            "algorithm.clip",
            "algorithm.reduction",
            "algorithm.positive_lm",
            "algorithm.kl",
            "algorithm.credit.policy_lambda",
            "algorithm.credit.whiten",
            "evaluation",
        ),
        lambda s, a: s.trainer.steps == 0,
        "trainer.steps is 0, so the policy is neither trained nor evaluated",
    ),
    Rule(
        (
            "scale.address",
            "scale.nodes",
            "scale.gpus_per_node",
            "scale.training_ranks",
            "scale.rollout_workers",
            "scale.verifier_workers",
            "scale.tensor_parallel",
            "scale.placement",
            "scale.restarts",
            "scale.answer_limit_s",
        ),
        lambda s, a: s.scale.backend == "local",
        "scale.backend is local, one process",
    ),
    Rule(("scale.placement",), lambda s, a: s.scale.gpus_per_node == 0, "scale.gpus_per_node is 0"),
    Rule(
        ("guards.max_rollbacks",),
        lambda s, a: s.guards.action != "rollback",
        "guards.action is not rollback",
    ),
    Rule(("guards.stuck_",), lambda s, a: not s.guards.watchdog, "guards.watchdog is false"),
    Rule(
        ("evaluation.top_p",),
        lambda s, a: s.evaluation.temperature == 0,
        "evaluation.temperature=0 is greedy",
    ),
    Rule(
        ("model.prompt_format",),
        lambda s, a: s.task.name in BUILTIN,
        "the task's prompts are plain texts, which stay as they are",
    ),
    Rule(
        ("task.heldout",),
        lambda s, a: bool(_options(s).get("eval_data")),
        "task.eval_data has the problems to evaluate on",
    ),
    Rule(
        ("task.eval_subset", "task.eval_split"),
        lambda s, a: s.task.name in DATA_TASKS and not _options(s).get("eval_data"),
        "there is no task.eval_data",
    ),
    Rule(
        ("task.eval_subset", "task.eval_split"),
        lambda s, a: _is_file(_options(s).get("eval_data")),
        "task.eval_data is a file",
    ),
    Rule(("task.subset", "task.split"), lambda s, a: _is_file(_options(s).get("data")), "task.data is a file"),
    Rule(
        ("task.max_response_tokens",),
        lambda s, a: s.rollout.max_response_tokens is not None,
        "rollout.max_response_tokens is set, which goes first",
    ),
    Rule(
        ("task.right_at",),
        lambda s, a: s.task.name in DATA_TASKS and _options(s).get("verifier", ProblemOptions.verifier) == "math",
        "the verifier math gives verdicts, no scores",
    ),
)


def unused(keys: Iterable[str], sections: Sections, algorithm: Algorithm) -> Iterator[tuple[str, str]]:
    """(setting, reason) for each of the settings that the run does not use, by the first rule that says so."""
    holding = [rule for rule in RULES if rule.unused(sections, algorithm)]
    for key in keys:
        rule = next((rule for rule in holding if rule.names(key)), None)
        if rule is not None:
            yield key, rule.why


EVALUATED = ("seed", "model", "task", "rollout.engine", "rollout.max_response_tokens", "evaluation", "scale",
             "trainer.layout", "trainer.max_invalid_ratio")  # fmt: skip
"""The settings that `vapo eval` uses, a section standing for all in it."""
INSTEAD = {
    "evaluation.prompts": "--prompts",
    "evaluation.every": "",
    "evaluation.final_samples_per_prompt": "-k",
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "model.policy_lora": "",
    "model.critic_lora": "",
    "model.lora_alpha": "",
    "model.gradient_checkpointing": "",
}
"""Settings of training whose like in an evaluation is another option, or that it has no use for."""

OWN_OPTIONS = {
    "evaluation.samples_per_prompt": "-k",
    "evaluation.temperature": "--temperature",
    "evaluation.top_p": "--top-p",
    "model.policy": "the argument RUN|MODEL",
    "model.critic": "--critic",
}
"""Settings that an evaluation uses, but `vapo eval` takes as options only: it also reports them."""


JUDGEMENT_OPTIONS = {
    "model.policy": "--policy",
    "model.critic": "--critic",
    "evaluation.samples_per_prompt": "-k",
    # a critic is judged on responses as it was trained on
    **dict.fromkeys(("evaluation.temperature", "rollout.temperature"), "a run with that rollout.temperature"),
    **dict.fromkeys(("evaluation.top_p", "rollout.top_p"), "none: responses are drawn as in training, from all tokens"),
}
"""The same for `vapo critic`."""


def option_instead(settings: Mapping[str, Any], options: Mapping[str, str] = OWN_OPTIONS) -> str | None:
    """An error text for the first of the settings, by dotted key, that the command takes as an option, or None."""
    key = next((key for key in settings if key in options), None)
    return None if key is None else f"{key} is not read from there by this command. Use {options[key]}."


def unused_in_evaluation(settings: Mapping[str, Any], uses: Sequence[str] = ()) -> str | None:
    """An error text for the first of the settings, by dotted key, that an evaluation does not use, or None.

    `uses` are further settings that matter, a section standing for all in it.
    """
    for key in settings:
        if key in INSTEAD or not any(key == name or key.startswith(f"{name}.") for name in (*EVALUATED, *uses)):
            advice = f"Use {INSTEAD[key]}." if INSTEAD.get(key) else "Leave it out."
            return f"{key} has no effect on an evaluation. {advice}"
    return None
