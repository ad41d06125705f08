"""What `VAPOTrainer` makes of the arguments of TRL's `GRPOTrainer`: rewards, tokenizers, environments, adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vapo.api.trainer_config import VAPOConfig
from vapo.errors import ConfigError, ModelError, counted
from vapo.models.reward_model import RewardModel
from vapo.models.tokens import load_tokenizer, read_tokenizer
from vapo.tasks.environments.channels import EnvironmentLimits
from vapo.tasks.environments.given import players_of
from vapo.tasks.environments.players import Players
from vapo.tasks.verifiers.rewards import environment_reward

RewardLike = str | torch.nn.Module | Callable[..., Any]
LORA_FIELDS = (
    "r",
    "lora_alpha",
    "task_type",
    "target_modules",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
)
"""Fields of a LoraConfig that may differ from its defaults; the first two are taken."""


def refuse(**given: bool) -> None:
    """Raise ConfigError for arguments of GRPOTrainer that are not taken."""
    instead = {
        "optimizers": "the optimizer is AdamW; set learning_rate, weight_decay and warmup_steps in args",
        "quantization_config": "weights are float32; for less memory set bf16, peft_config or critic_kind='side'",
        "rollout_func": "write an engine (vapo.RolloutEngine) instead",
        "environment_factory": "one environment is taken, not a dict of several; let one choose by a column in reset()",
    }
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(f"VAPOTrainer does not take {name}: {instead[name]}.")


def players(factory: Any, tools: Sequence[Callable[..., Any]] | None, args: VAPOConfig) -> Players | None:
    """The environments of the episodes; None where an episode is one turn."""
    if factory is None and not tools:
        return None
    for what, given in (("environment_factory", factory), *(("tools", tool) for tool in tools or ())):
        if given is not None and not callable(given):
            raise ConfigError(f"{what} holds a {type(given).__name__}; give functions, or a class.")
    named = ("tool_timeout_s", "tool_memory_mb")
    limits = EnvironmentLimits(args.tool_timeout_s, args.tool_memory_mb, args.tool_characters, named)
    return players_of(factory, list(tools or ()), limits)


def named_reward(factory: Any) -> Callable[..., Any]:
    """The environment's own reward as a reward function, under the name of the environment."""
    reward = wraps(environment_reward)(lambda **given: environment_reward(**given))
    reward.__name__ = getattr(factory, "__name__", type(factory).__name__)
    return reward


def tokenizer_of(model: str | PreTrainedModel, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer where the model lies, or was loaded from. Raises ConfigError or ModelError if there is none."""
    source = model if isinstance(model, str) else model.config.name_or_path
    if not source:
        raise ConfigError("The model was not loaded from a folder or the hub: give its tokenizer as processing_class.")
    if source == "builtin":
        raise ConfigError(
            "model='builtin' is the base model of a shipped task, and a data set has none. Give a hub id, a folder, or "
            "a causal language model."
        )
    try:
        return load_tokenizer(source, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise error from None  # the loader's own chain of errors says less than this one


def reward_functions(
    given: RewardLike | Sequence[RewardLike],
    tokenizers: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None,
    own: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool,
) -> tuple[list[Callable[..., Any]], list[str]]:
    """Every reward as a function, and notes on reward models that read with the policy's tokenizer, `own`."""
    several = list(given) if isinstance(given, list | tuple) else [given]
    matching = (
        [tokenizers] * len(several) if isinstance(tokenizers, PreTrainedTokenizerBase) else list(tokenizers or ())
    )
    matching = matching or [None] * len(several)
    if len(matching) != len(several):
        raise ConfigError(
            f"reward_processing_classes has {counted(len(matching), 'tokenizer')} for "
            f"{counted(len(several), 'reward function')}. Give one for each, None for functions."
        )
    functions: list[Callable[..., Any]] = []
    notes: list[str] = []
    for reward, tokenizer in zip(several, matching, strict=True):
        if isinstance(reward, str):
            functions.append(RewardModel.load(reward, tokenizer, trust_remote_code=trust_remote_code))
        elif isinstance(reward, torch.nn.Module):
            name = type(reward).__name__
            tokenizer = tokenizer or _tokenizer_beside(reward, trust_remote_code)
            if tokenizer is None and isinstance(reward, PreTrainedModel):
                notes.append(
                    f"the reward model {name} reads with the policy's tokenizer, because none lies beside its weights: "
                    "give its own in reward_processing_classes"
                )
            functions.append(RewardModel(reward, tokenizer or own, name))
        elif callable(reward):
            functions.append(reward)
        else:
            raise ConfigError(f"reward_funcs holds a {type(reward).__name__}; give functions, model ids or modules.")
    return functions, notes


def _tokenizer_beside(model: torch.nn.Module, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """The tokenizer where a model was loaded from; None if there is none."""
    source = model.config.name_or_path if isinstance(model, PreTrainedModel) else ""
    try:
        return read_tokenizer(source, trust_remote_code=trust_remote_code) if source else None
    except ModelError:
        return None


def adapters(peft: Any) -> dict[str, Any]:
    """model.policy_lora and lora_alpha of a LoraConfig."""
    if peft is None:
        return {}
    if getattr(peft.peft_type, "value", peft.peft_type) != "LORA":
        raise ConfigError(f"peft_config is a {type(peft).__name__}; only LoraConfig is taken.")
    plain = type(peft)()
    for name in dataclasses.asdict(plain):
        if name not in LORA_FIELDS and getattr(peft, name) != getattr(plain, name):
            raise ConfigError(f"peft_config: {name}={getattr(peft, name)} is not taken; leave it out.")
    if peft.target_modules not in (None, "all-linear"):
        raise ConfigError(
            f"peft_config: target_modules={peft.target_modules} is not taken; leave it out. Adapters go on all linear "
            "layers."
        )
    return {"policy_lora": peft.r, "lora_alpha": float(peft.lora_alpha)}
