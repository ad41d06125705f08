"""The sections of a settings file: frozen typed objects, one line of meaning and one range for each setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vapo.algo.sizes import Sizes, with_batch
from vapo.errors import ConfigError
from vapo.ranges import Range, check_ranges, number
from vapo.rollout.engine_settings import DEFAULT_ENGINE, EngineSettings
from vapo.trackers.tracker import TrackerName
from vapo.trainer.settings import CheckpointSettings, EvaluationSettings, GuardSettings, TrainerSettings


@dataclass(frozen=True)
class ModelConfig:
    """Which networks."""

    policy: str = "builtin"
    """`builtin` (the base model shipped for the task), a folder, a hub id, or a .gguf file."""
    critic: str | None = None
    """Where the critic starts: a base model, a reward model, or a saved critic; null takes the policy's base, and for
    a side critic new weights."""
    critic_kind: Literal["full", "side"] = "full"
    """`full` is a network of its own; `side` is a small one that reads the policy's hidden states, at a fraction of the
    time and memory."""
    side_layers: int | None = number(None, unit="layers", ge=1)
    """How many of the policy's layers a side critic reads beside its embeddings, evenly spaced; null takes every third,
    12 at most."""
    side_share: float = number(0.02, gt=0, le=1, unit="share of the policy's parameters")
    """A side critic's parameters at most, as a share of the policy's. Its width is 32 at least: beside a policy of less
    than one to two million parameters it takes more than the share."""
    side_attention: bool = False
    """Let a side critic attend to the whole text itself. Else it knows of it what the policy's states and the prompt's
    mean say, which costs less and learns from fewer responses."""
    dtype: Literal["float32", "bfloat16", "bfloat16-weights", "auto"] = "float32"
    """Precision of forward and backward passes; weights, values and losses stay float32. `bfloat16-weights` keeps the
    weights in bfloat16, too, and float32 copies in the optimizer: passes convert nothing. `auto` measures when a
    run begins, and takes bfloat16 where it is at least 1.1 times as fast; the run keeps its choice."""
    policy_lora: int = number(0, ge=0)
    """Rank of low-rank adapters on the policy; 0 trains all of its weights."""
    critic_lora: int = number(0, ge=0)
    """Rank of low-rank adapters on the critic, beside its head; 0 trains all of its weights."""
    lora_alpha: float | None = number(None, gt=0)
    """Scale of the adapters' contribution, divided by the rank; null takes twice the rank."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, a third
    more time."""
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    """How problems become prompts: `chat` by the tokenizer's chat template, `plain` as `Problem: ... Solution:`,
    which suits base models; auto takes chat where there is a template. Prompts that are one text stay as they are."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub repository. Leave off unless you have read it."""

    @property
    def half(self) -> bool:
        """Whether passes compute in bfloat16; `auto` has not chosen yet."""
        return self.dtype in ("bfloat16", "bfloat16-weights")

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.dtype == "bfloat16-weights" and (self.policy_lora or self.critic_lora):
            raise ConfigError(
                "model.dtype=bfloat16-weights is for runs that train all weights. Beside adapters set "
                "model.dtype=bfloat16."
            )
        if self.critic_kind == "side" and self.critic_lora:
            raise ConfigError("A side critic takes no adapters: leave out model.critic_lora or model.critic_kind=side.")
        if self.critic_kind != "side" and self.side_layers is not None:
            raise ConfigError("model.side_layers is a side critic's: set model.critic_kind=side, or leave it out.")


class TaskConfig(BaseModel):
    """Which problems. Further keys are the task's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "maze"
    """A built-in task, a data task, `reasoning-gym/NAME`, an installed plug-in, or `file.py:function`."""
    data: str | None = None
    """A file or a hub data set, for tasks made from one."""

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options."""
        return {**({} if self.data is None else {"data": self.data}), **(self.model_extra or {})}


def _engine(value: Any) -> Any:
    """`engine: torch` is short for `engine: {kind: torch}`."""
    return {"kind": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled in training."""

    engine: Annotated[EngineSettings, BeforeValidator(_engine)] = DEFAULT_ENGINE
    """Which engine samples: `torch` or `generate`, or a mapping with its `kind` and its settings."""
    temperature: float = number(1.0, ge=0)
    """Sampling temperature, above 0; log-probabilities are those of the tempered distribution."""
    top_p: float = number(1.0, gt=0, le=1, unit="probability")
    """Must be 1 in training: a truncated distribution is not the policy whose gradient is taken."""
    max_response_tokens: int | None = number(None, ge=1, unit="tokens")
    """Length limit of a response in tokens; null takes the task's."""

    def __post_init__(self) -> None:
        check_ranges(self, "rollout")
        if self.temperature == 0:
            raise ConfigError("rollout.temperature must be above 0 in training: greedy samples carry no gradient.")
        if self.top_p != 1:
            raise ConfigError(
                f"rollout.top_p must be 1 in training, got {self.top_p}: probability ratios would be taken to a "
                "distribution that was not sampled from. Use evaluation.top_p for evaluation."
            )


@dataclass(frozen=True)
class TrainerConfig(TrainerSettings):
    """The loop's settings, and the sizes: the numbers that put the method at this model's and task's size.

    A size replaces the preset's number where the method uses it at all, the same way for every preset. Null takes
    a recipe's own number, or a default for the model's size (`vapo.session.sizing`).
    """

    samples_per_step: int | None = number(None, ge=1, unit="responses")
    """Responses per rollout step (the paper's 8,192)."""
    group_size: int | None = number(None, ge=1, unit="responses")
    """Responses per prompt, for methods that sample groups (the paper's 16)."""
    minibatch_size: int | None = number(None, ge=1, unit="responses")
    """Responses per gradient step (the paper's 512)."""
    actor_lr: float | None = number(None, ge=0, unit="per gradient step")
    """Policy learning rate (the paper's 1e-6)."""
    critic_lr: float | None = number(None, ge=0, unit="per gradient step")
    """Critic learning rate (the paper's 2e-6)."""
    warmup_steps: int | None = number(None, ge=0, unit="rollout steps")
    """Rollout steps of linear learning-rate warm-up."""
    pretraining_steps: int | None = number(None, ge=0, unit="rollout steps")
    """Value-pretraining steps, for methods that pretrain (the paper's 50)."""


@dataclass(frozen=True)
class ScaleConfig:
    """Where the run runs."""

    backend: Literal["local", "ray"] = "local"
    """`local` is this process; `ray` spreads training, rollouts and verifiers over processes and machines."""
    threads: int | None = number(None, ge=1, unit="threads")
    """CPU threads; null takes OMP_NUM_THREADS if it is set, else all cores, and one for models under 10 million
    parameters, where one is faster. With trainer.max_staleness=1 sampling and training have half of them each, and one
    at least. With Ray each process has as many."""
    address: str | None = None
    """Which Ray: null starts one on this machine and ends it with the run; `auto`, `HOST:PORT` or `ray://HOST:PORT`
    joins a cluster that runs already."""
    nodes: int = number(1, ge=1, unit="machines")
    """Machines that the run takes."""
    gpus_per_node: int = number(0, ge=0, unit="GPUs")
    """GPUs that it takes of each; 0 trains and samples on CPUs."""
    training_ranks: int = number(1, ge=1, unit="processes")
    """Processes that policy and critic are sharded over (FSDP2)."""
    rollout_workers: int = number(1, ge=1, unit="processes")
    """Engines that sample, each with its own copy of the policy."""
    verifier_workers: int = number(1, ge=0, unit="processes")
    """Processes that judge responses; 0 judges in the trainer's process."""
    tensor_parallel: int = number(1, ge=1, unit="GPUs")
    """GPUs of one machine that one rollout engine is split over; vLLM only."""
    placement: Literal["colocated", "split"] = "colocated"
    """`colocated`: training ranks and rollout engines take turns on the same GPUs; `split`: each has its own."""
    offload: bool = False
    """Policy, critic and reference take turns on the device: those that do not compute wait in host memory with their
    gradients and optimizers, and all do while engines on the same device sample. Only a GPU has memory of its own."""
    restarts: int = number(3, ge=0, unit="starts")
    """How often, in all, processes that died are started again before the run gives up."""
    answer_limit_s: float = number(600.0, gt=0, unit="s")
    """A process that does not answer for so long counts as hung, and is replaced."""

    def __post_init__(self) -> None:
        check_ranges(self, "scale")


class Sections(BaseModel):
    """All sections but `algorithm`, which is resolved from its preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: Annotated[int, Field(ge=0, lt=2**64), Range(ge=0, lt=2**64)] = 0
    """Decides every draw of the run."""
    trackers: tuple[TrackerName, ...] = ()
    """Where figures, samples and alarms go besides the run's folder: any of tensorboard, wandb, trackio, mlflow."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationSettings = EvaluationSettings()
    guards: GuardSettings = GuardSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    scale: ScaleConfig = ScaleConfig()


class Choice(BaseModel):
    """Where a method starts from. Further keys are fields of the method, set over the preset's."""

    model_config = ConfigDict(extra="allow", frozen=True)
    preset: str = "vapo"
    """The method: ppo, vc-ppo, grpo, dapo, vapo, vapo2, rloo, orz, sao, bpco, easyppo or justrl2 (docs/methods.md)."""
    without: list[str] = []
    """Techniques taken away: each one's field becomes plain PPO's, or VAPO's for those that vapo2 adds."""
    alpha: Annotated[float | None, Range(gt=0, unit="per token")] = None
    """α of the length-adaptive λ (the paper's 0.05); null takes a recipe's, or a default for the length limit."""
    k: Annotated[float | None, Range(gt=0, le=1, unit="share of the outcome")] = None
    """Makes λ one by share, k^(1/l): the share k of the outcome reaches the first token at every length (α = 1.5 is
    k = 0.51, 0.5 is 0.14, 0.05 is 2e-9). In the place of alpha; null keeps the preset's rule."""

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the method that were set by themselves."""
        return self.model_extra or {}


def sizes(trainer: TrainerConfig, choice: Choice) -> Sizes:
    """The chosen sizes; where some of samples, group and minibatch were chosen, the others fit them."""
    chosen = Sizes(
        samples_per_step=trainer.samples_per_step,
        group_size=trainer.group_size,
        minibatch_size=trainer.minibatch_size,
        actor_lr=trainer.actor_lr,
        critic_lr=trainer.critic_lr,
        warmup_steps=trainer.warmup_steps,
        pretraining_steps=trainer.pretraining_steps,
        alpha=choice.alpha,
        k=choice.k,
    )
    batch = (trainer.samples_per_step, trainer.group_size, trainer.minibatch_size)
    return chosen if all(size is None for size in batch) else with_batch(chosen)
