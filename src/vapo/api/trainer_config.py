"""`VAPOConfig`: the arguments of TRL's `GRPOConfig` that mean something here, and ours beside them, as our settings."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from numbers import Real
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from vapo.errors import ConfigError
from vapo.session.reference import all_settings, task_options
from vapo.trackers.tracker import PACKAGES

NO_EFFECT = frozenset((
    "auto_find_batch_size", "dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_find_unused_parameters", "disable_dropout",
    "disable_tqdm", "do_eval", "do_predict", "do_train", "eval_on_start", "include_num_input_tokens_seen",
    "label_names", "log_completions", "log_level", "log_unique_prompts", "logging_first_step",
    "logging_nan_inf_filter", "logging_strategy", "num_completions_to_print",
    "overwrite_output_dir", "per_device_eval_batch_size", "remove_unused_columns",
    "run_name", "save_only_model", "save_safetensors", "skip_memory_metrics", "tf32",
    "torch_empty_cache_steps", "vllm_importance_sampling_correction",
))  # fmt: skip
"""Arguments of GRPOConfig that are taken and change nothing here: what they ask for is done anyway, or has no place."""
REFUSED = {
    "push_to_hub": "call trainer.push_to_hub() after train()",
    "max_prompt_length": "prompts are read whole; leave long ones out of train_dataset",
    "shuffle_dataset": "the order of the rows is drawn from the seed, anew in every epoch",
    "use_cpu": "the GPU is taken where there is one: hide it with CUDA_VISIBLE_DEVICES=",
    "loss_type": "the loss follows from `method`: grpo, ppo and vc-ppo count responses, the others tokens",
    "importance_sampling_level": "ratios are per token",
    "scale_rewards": "advantages follow from `method`",
    "top_k": "training samples from the policy itself; a truncated distribution has another gradient",
    "min_p": "training samples from the policy itself; a truncated distribution has another gradient",
    "repetition_penalty": "training samples from the policy itself; a changed distribution has another gradient",
    "deepspeed": "use scale.backend=ray in `settings`",
    "fsdp": "use scale.backend=ray in `settings`",
    "optim": "the optimizer is AdamW",
    "use_liger_kernel": "the output layer is computed in chunks anyway",
    "sync_ref_model": "set algorithm.kl.refresh_every in `settings`",
    "delta": "set algorithm.clip={kind: dual, ...} in `settings`",
    "load_best_model_at_end": "the last policy is the result; the others of save_total_limit are in checkpoints/",
}
"""Why the better-known other arguments of GRPOConfig are not taken, or what takes their place."""


HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "shuffle_dataset": (None, True),
    "top_k": (None, 0, -1),
    "repetition_penalty": (None, 1, 1.0),
    "optim": (None, "adamw_torch", "adamw_torch_fused"),
    "importance_sampling_level": (None, "token"),
}
"""Values of arguments in `REFUSED` that ask for what is done anyway; of the others None and False."""


@dataclass(kw_only=True)
class VAPOConfig:
    """What `VAPOTrainer` needs beside a model, rewards and data.

    The first part has the names of TRL 1.16's GRPOConfig, and its defaults but for the learning rate, clipping, `beta`
    and `mask_truncated_completions`, which the method chooses, `lr_scheduler_type` (constant here), `save_total_limit`
    (2 here), `output_dir`, `bf16` and `gradient_checkpointing` (off here), and evaluation (also before and after). None
    leaves a choice to vapo, which fits it to the model's size and the length limit.

    Raises ConfigError, with its name, for an argument that is not taken.
    """

    # ---- TRL's names
    output_dir: str = "vapo-output"
    """The run directory: new or empty, unless training is resumed."""
    seed: int = 42
    max_steps: int = -1
    """Gradient steps; -1 goes by num_train_epochs."""
    num_train_epochs: float = 3.0
    """Passes over train_dataset, if max_steps is not positive."""
    per_device_train_batch_size: int = 8
    """Responses; times gradient_accumulation_steps they are the minibatch of one gradient step."""
    gradient_accumulation_steps: int = 1
    generation_batch_size: int | None = None
    """Responses per rollout step; None takes steps_per_generation batches."""
    steps_per_generation: int | None = None
    """Batches of per_device_train_batch_size per rollout step; None takes gradient_accumulation_steps."""
    num_generations: int = 8
    """Responses to a prompt."""
    num_generations_eval: int | None = None
    max_completion_length: int = 256
    """Length limit of a response in tokens; of an episode with tools all turns and results count."""
    max_tool_calling_iterations: int | None = None
    """Turns with calls of tools; None is limited by max_completion_length only."""
    learning_rate: float | None = None
    """Of the policy."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: float = 0
    """Gradient steps of linear warm-up, or below 1 their share."""
    warmup_ratio: float = 0.0
    lr_scheduler_type: str = "constant_with_warmup"
    """The rate is constant after the warm-up; `linear` and `cosine` are refused."""
    temperature: float = 1.0
    top_p: float = 1.0
    beta: float | None = None
    """Weight of the KL penalty to the initial policy; None takes the method's, which is 0 for most."""
    epsilon: float | None = None
    """Lower clipping bound; None takes the method's."""
    epsilon_high: float | None = None
    """Upper clipping bound; None takes the method's."""
    num_iterations: int = 1
    """Passes over each rollout step's responses."""
    reward_weights: list[float] | None = None
    mask_truncated_completions: bool | None = None
    """True keeps responses that were cut off out of every loss (algorithm.truncated=drop). False counts their verdicts
    (zero). None takes the method's."""
    gradient_checkpointing: bool = False
    bf16: bool = False
    """bfloat16 passes over float32 weights."""
    fp16: bool = False
    """Refused if set: use bf16."""
    use_vllm: bool = False
    vllm_gpu_memory_utilization: float | None = None
    eval_strategy: str = "no"
    """`no`: before and after training; `steps`: every eval_steps, too."""
    eval_steps: float | None = None
    """Gradient steps between evaluations, or below 1 their share; None takes logging_steps."""
    logging_steps: float = 10
    """Every step is logged; here it is only what eval_steps falls back to."""
    metric_for_best_model: str | None = None
    """What transformers' EarlyStoppingCallback watches: `avg`, `pass/4`, `mean_length`, ... of the evaluations; needs
    eval_strategy="steps"."""
    greater_is_better: bool | None = None
    """Whether more of it is better; None: yes, but for lengths and losses."""
    save_strategy: str = "steps"
    save_steps: float = 500
    """Gradient steps between checkpoints, or below 1 their share."""
    save_total_limit: int | None = None
    """Checkpoints that are kept; None keeps 2."""
    model_init_kwargs: Mapping[str, Any] | None = None
    """Only trust_remote_code and a dtype of float32 or bfloat16."""
    trust_remote_code: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_token: str | None = None
    report_to: None | str | list[str] = None  # noqa: RUF036 - HfArgumentParser takes the second of three
    """Trackers: tensorboard, wandb, mlflow, trackio; `none` and `all` are none of them."""

    # ---- ours
    method: str = "vapo"
    """A preset: ppo, vc-ppo, grpo, dapo, vapo, vapo2, rloo, orz, sao, bpco, easyppo, justrl2."""
    without: list[str] = field(default_factory=list)
    """Techniques taken away from the method."""
    alpha: float | None = None
    """α of the length-adaptive λ."""
    k: float | None = None
    """The share of the outcome that reaches the first token, in place of alpha."""
    critic: str | None = None
    """Where the critic starts: a base model, a reward model or a saved critic; None takes the policy's base."""
    critic_kind: Literal["full", "side"] = "full"
    critic_learning_rate: float | None = None
    pretraining_steps: int | None = None
    """Rollout steps of value pretraining, for methods that pretrain."""
    right_at: float | None = None
    """The score from which a response counts as right (LM loss, dynamic sampling, accuracy); None is full marks."""
    tool_timeout_s: float = 10.0
    """Seconds that one call of a tool or an environment may take."""
    tool_memory_mb: int = 2048
    """MiB that the process of an episode's tools or environment may take."""
    tool_characters: int = 10_000
    """Characters of a tool's result that the model gets to read."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Any other settings, as in a settings file: {"trainer": {"micro_batch_tokens": 8192}}."""

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "num_iterations",
                     "max_completion_length", "generation_batch_size", "steps_per_generation"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number from 1 on, got {value!r}.")
        for name, kind in get_type_hints(VAPOConfig).items():
            _check_number(name, getattr(self, name), kind)
        weights = self.reward_weights
        if weights is not None and not (isinstance(weights, Sequence) and all(map(_is_number, weights))):
            raise ConfigError(
                f"reward_weights must be a list of numbers, one for each reward function, got {weights!r}."
            )
        if unknown := [name for name in self.trackers if name not in PACKAGES]:
            raise ConfigError(
                f"report_to: {unknown[0]} is not known here; there are {', '.join(PACKAGES)}, and none. For another "
                "one, log from a callback's on_log."
            )
        if self.fp16:
            raise ConfigError("fp16=True: half precision needs loss scaling. Set bf16=True.")
        if self.lr_scheduler_type not in ("constant", "constant_with_warmup"):
            raise ConfigError(
                f"lr_scheduler_type={self.lr_scheduler_type}: the learning rate is constant after its warm-up. Leave "
                "it out, or set constant_with_warmup."
            )
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ConfigError("generation_batch_size and steps_per_generation say the same thing: give one of them.")
        if self.samples % self.num_generations:
            raise ConfigError(
                f"A rollout step of {self.samples} responses does not hold whole groups of num_generations="
                f"{self.num_generations}. Change generation_batch_size, or per_device_train_batch_size times "
                f"{'steps_per_generation' if self.steps_per_generation else 'gradient_accumulation_steps'}."
            )
        if self.samples % self.minibatch:
            raise ConfigError(
                f"per_device_train_batch_size x gradient_accumulation_steps = {self.minibatch} must divide the "
                f"{self.samples} responses of a rollout step."
            )
        if self.metric_for_best_model is not None and self.eval_strategy == "no":
            raise ConfigError("metric_for_best_model is judged at evaluations: set eval_strategy='steps'.")
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", "length", "ratio"))
        for name in ("eval_strategy", "save_strategy"):
            if (value := getattr(self, name)) not in ("no", "steps"):
                raise ConfigError(f"{name}={value}: take 'steps' (with {name[:4]}_steps) or 'no'.")
        if self.save_strategy == "steps" and not self.save_steps > 0:
            raise ConfigError(f"save_steps must be above 0, got {self.save_steps:g}; save_strategy='no' saves none.")
        if self.eval_strategy == "steps" and not (self.eval_steps or self.logging_steps) > 0:
            raise ConfigError("eval_strategy='steps' needs eval_steps above 0, or else logging_steps.")

    @property
    def load_best_model_at_end(self) -> bool:
        """Callbacks ask for it; the last policy is the result."""
        return False

    @property
    def trackers(self) -> list[str]:
        """The trackers of report_to; its `all` and `none` are none."""
        given = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())
        return [name for name in given if name not in ("none", "all")]

    @property
    def minibatch(self) -> int:
        """Responses per gradient step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def samples(self) -> int:
        """Responses per rollout step."""
        batches = self.steps_per_generation or self.gradient_accumulation_steps
        return self.generation_batch_size or self.per_device_train_batch_size * batches

    @property
    def gradient_steps_per_rollout(self) -> int:
        """Gradient steps that a rollout step makes."""
        return self.samples // self.minibatch * self.num_iterations

    def rollout_steps(self, gradient_steps: float) -> int:
        """Rollout steps that make so many gradient steps; at least 1."""
        return max(1, math.ceil(gradient_steps / self.gradient_steps_per_rollout))

    def steps(self, rows: int) -> int:
        """Rollout steps of training on so many rows."""
        if self.max_steps > 0:
            return self.rollout_steps(self.max_steps)
        return max(1, math.ceil(self.num_train_epochs * rows * self.num_generations / self.samples))

    def as_settings(self, rows: int) -> dict[str, Any]:
        """Our settings, nested, for training on so many rows; a setting that is left to vapo is not in it."""
        steps = self.steps(rows)
        gradient_steps = steps * self.gradient_steps_per_rollout
        warmup = _absolute(self.warmup_steps or self.warmup_ratio, gradient_steps)
        trainer = {
            "steps": steps,
            "samples_per_step": self.samples,
            "group_size": self.num_generations,
            "minibatch_size": self.minibatch,
            "actor_lr": self.learning_rate,
            "critic_lr": self.critic_learning_rate,
            "warmup_steps": self.rollout_steps(warmup) if warmup else 0,
            "pretraining_steps": self.pretraining_steps,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
        }
        masks = self.mask_truncated_completions
        truncated = None if masks is None else "drop" if masks else "zero"
        algorithm: dict[str, Any] = {
            "preset": self.method,
            "without": list(self.without) or None,
            "alpha": self.alpha,
            "k": self.k,
            "reward": {"by": "score"},
            "clip": {"low": self.epsilon, "high": self.epsilon if self.epsilon_high is None else self.epsilon_high},
            "kl": {"coef": self.beta},
            "optimization": {"epochs": self.num_iterations} if self.num_iterations > 1 else {},
            "truncated": truncated,
        }
        engine = {"kind": "vllm", "memory_share": self.vllm_gpu_memory_utilization} if self.use_vllm else {}
        eval_steps = (
            self.rollout_steps(_absolute(self.eval_steps or self.logging_steps, gradient_steps))
            if self.eval_strategy == "steps"
            else 0
        )
        rest = {
            "seed": self.seed,
            "trackers": self.trackers or None,
            "model": {
                "critic": self.critic,
                "critic_kind": self.critic_kind,
                "dtype": self._dtype(),
                "gradient_checkpointing": self.gradient_checkpointing,
                "trust_remote_code": self.trusts_remote_code,
            },
            "rollout": {
                "max_response_tokens": self.max_completion_length,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "engine": engine,
            },
            "evaluation": {"every": eval_steps, "samples_per_prompt": self.num_generations_eval},
            "checkpoint": {
                "every": self.rollout_steps(_absolute(self.save_steps, gradient_steps))
                if self.save_strategy == "steps"
                else 0,
                "keep": self.save_total_limit,
            },
        }
        return _given({**rest, "trainer": trainer, "algorithm": algorithm})

    def _dtype(self) -> str:
        dtype = str((self.model_init_kwargs or {}).get("dtype") or "float32").removeprefix("torch.")
        if dtype not in ("float32", "bfloat16", "auto"):
            raise ConfigError(f"model_init_kwargs: dtype={dtype} is not taken; set float32 or bfloat16.")
        return "bfloat16" if self.bf16 else dtype

    @property
    def trusts_remote_code(self) -> bool:
        """Whether code that comes with a model may run. Raises ConfigError for other model_init_kwargs."""
        given = dict(self.model_init_kwargs or {})
        trusts = self.trust_remote_code or bool(given.pop("trust_remote_code", False))
        if other := sorted(given.keys() - {"dtype", "attn_implementation", "device_map"}):
            raise ConfigError(f"model_init_kwargs: {other[0]} is not taken; only dtype and trust_remote_code are.")
        return trusts


ARGUMENTS = {
    "trainer.actor_lr": "learning_rate",
    "trainer.critic_lr": "critic_learning_rate",
    "trainer.group_size": "num_generations",
    "trainer.samples_per_step": "generation_batch_size",
    "trainer.steps": "max_steps",
    "trainer.pretraining_steps": "pretraining_steps",
    "trainer.max_grad_norm": "max_grad_norm",
    "trainer.weight_decay": "weight_decay",
    "trainer.warmup_steps": "warmup_steps",
    "rollout.max_response_tokens": "max_completion_length",
    "rollout.temperature": "temperature",
    "rollout.top_p": "top_p",
    "evaluation.samples_per_prompt": "num_generations_eval",
    "algorithm.clip.low": "epsilon",
    "algorithm.clip.high": "epsilon_high",
    "algorithm.kl.coef": "beta",
    "algorithm.optimization.epochs": "num_iterations",
    "algorithm.alpha": "alpha",
    "algorithm.k": "k",
    "algorithm.preset": "method",
    "model.critic": "critic",
    "model.critic_kind": "critic_kind",
    "model.dtype": "bf16",
    "model.gradient_checkpointing": "gradient_checkpointing",
    "task.right_at": "right_at",
    "task.verifier": "reward_funcs",
}
"""The arguments whose settings have another name; `settings=` takes all others."""
_SECTIONS = "trainer|rollout|evaluation|algorithm|model|task|guards|checkpoint|scale"
_SETTING = re.compile(rf"(?<![\w./-])(?:{_SECTIONS})\.[a-z_.]*[a-z_]\b(?!/)")
"""What may be a setting, and no part of a path; `_is_setting` tells it from a file, such as model.safetensors."""
_RESUME = re.compile(r"vapo resume (?:'[^']*'|[^\s,;]+)(?P<more> (?=--set ))?")
_DATA_SET = re.compile(r"(?:\b(?:the )?task )?(?<!')\brecords-[0-9a-f]{12}\b(?!')", re.IGNORECASE)
"""The task that rows are, whose name is a hash of them."""
_SET = re.compile(r"--set ([a-z_.]+)=(?!['\"{\[])([^\s,;]*[^\s,;:.)])")
"""An option of a command with a plain value, without the mark that ends its sentence."""
_LONGER = " --set trainer.steps=N"


def in_arguments(message: str) -> str:
    """A message of the run with the names that its user knows: those of arguments, and of the trainer's methods.

    >>> in_arguments("Lower trainer.actor_lr or guards.patience.")
    "Lower learning_rate or settings['guards']['patience']."
    >>> in_arguments("the 4 held-out prompts of task records-3755dd07aab5")
    'the 4 held-out prompts of the data set'
    >>> in_arguments("Sample slower: --set rollout.engine=generate.")
    "Sample slower: settings={'rollout': {'engine': 'generate'}}."
    """

    def named(match: re.Match[str]) -> str:
        name = match[0]
        if not _is_setting(name):
            return name
        path = "".join(f"[{part!r}]" for part in name.split("."))
        return ARGUMENTS.get(name, f"settings{path}")

    def resumed(match: re.Match[str]) -> str:
        return "trainer.train(resume_from_checkpoint=True)" + (" with " if match["more"] else "")

    message = _DATA_SET.sub("the data set", message)
    message = message.replace(_LONGER, " with a larger trainer.steps")
    message = _SET.sub(_as_argument, _RESUME.sub(resumed, message))
    return _SETTING.sub(named, message)


def _as_argument(option: re.Match[str]) -> str:
    """`--set name=value` as an argument of VAPOConfig."""
    name, text = option.groups()
    if not _is_setting(name):
        return option[0]
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if name in ARGUMENTS:
        return f"{ARGUMENTS[name]}={value!r}"
    for part in reversed(name.split(".")):
        value = {part: value}
    return f"settings={value!r}"


def _is_setting(name: str) -> bool:
    """Whether it is a setting or an option of a task, or a section of settings."""
    known = {*ARGUMENTS, *all_settings(), *(option.key.replace("task.NAME", "task") for option in task_options())}
    return name in known or any(other.startswith(f"{name}.") for other in known)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_number(name: str, value: Any, kind: Any) -> None:
    """Raise ConfigError unless the value of a field of this type is a number where it has to be one."""
    allowed = {kind, *get_args(kind)}
    if not allowed & {int, float} or (value is None and NoneType in allowed):
        return
    whole = float not in allowed
    if value is None or not _is_number(value) or (whole and value % 1 != 0):
        raise ConfigError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}.")


def _absolute(steps: float, of: int) -> float:
    """A number of steps; below 1 it is a share of all of them, as in transformers."""
    return steps if steps >= 1 else steps * of


_set_fields = VAPOConfig.__init__


@wraps(_set_fields)
def _checked(self: VAPOConfig, *too_many: Any, **arguments: Any) -> None:
    """Refuse by name what is not taken, and leave out what has no effect."""
    if too_many:
        raise ConfigError("VAPOConfig takes named arguments only: VAPOConfig(output_dir=...).")
    known = {f.name for f in fields(VAPOConfig)}
    for name in sorted(arguments.keys() - known - NO_EFFECT):
        if name in REFUSED and arguments[name] in HARMLESS.get(name, (None, False)):
            continue
        if why := REFUSED.get(name):
            raise ConfigError(f"VAPOConfig does not take {name}: {why}.")
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"VAPOConfig has no argument {name}.{hint} docs/trainer.md lists what it takes.")
    _set_fields(self, **{name: value for name, value in arguments.items() if name in known})


VAPOConfig.__init__ = _checked  # type: ignore[method-assign]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that are None, and without sections that are empty then."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        kept = _given(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            found[key] = kept
    return found
