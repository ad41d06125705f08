"""Checks of what a configuration names: task, data files, verifier, model folders, vLLM. Needs no
torch.

They are cheap looks at names and paths, so that a mistake in one is reported before torch loads, which takes seconds.
`inputs.read_inputs` reads what is named, and finds the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

from vapo.bases.shipped import builtin_model
from vapo.durability import checkpoint
from vapo.errors import ModelError
from vapo.models.model_source import MODEL_CONFIG, check_source
from vapo.rollout.vllm_environment import check_environment
from vapo.session.config import Config
from vapo.tasks.catalog import check_named
from vapo.tasks.registry import BUILTIN, make_task

TASK_FILES = ("data", "eval_data", "verifier", "environment")
"""Options of a task that may name a file."""


def check_paths(config: Config, *, to_train: bool = True) -> None:
    """Raise ConfigError, DataError or ModelError for a task, a file or a model folder that is not there.

    Without `to_train`, training data are not needed, and a critic is one that ranks samples. A hub id is not looked up.
    """
    check_task_files(config, to_train=to_train)
    check_policy(config)
    check_environment(config.sections.rollout.engine)
    if config.algorithm.has_critic or not to_train:
        check_critic(config)


def check_paths_of_run(config: Config, run_dir: Path) -> None:
    """`check_paths` for a resume: networks whose weights lie whole in a checkpoint are read from there."""
    check_task_files(config)
    check_environment(config.sections.rollout.engine)
    model, saved = config.sections.model, bool(checkpoint.names(run_dir / "checkpoints"))
    if model.policy_lora or not saved:
        check_policy(config)
    if config.algorithm.has_critic and (model.critic_lora or not saved):
        check_critic(config)


def check_task_files(config: Config, *, to_train: bool = True) -> None:
    """Raise ConfigError or DataError for a task, an option of it, a data file or a verifier that is not there."""
    task = config.sections.task
    check_named(task.name, task.options, to_train=to_train)


def check_policy(config: Config) -> None:
    """Raise ModelError for a path without a model, or if no base model ships for the task."""
    task, policy = config.sections.task, config.sections.model.policy
    if policy != "builtin":
        check_source(policy, "policy")
    else:
        builtin_model(task.name, make_task(task.name, **task.options).options if task.name in BUILTIN else None)


def check_has_values(critic: str) -> None:
    """Raise ModelError for the folder of a language model, where a trained critic is meant."""
    path = Path(critic) / MODEL_CONFIG
    architectures = (json.loads(path.read_text(encoding="utf-8")).get("architectures") or []) if path.is_file() else []
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ModelError(
            f"{critic} holds a language model, which has no value head. Give a critic/ folder, of a run or of "
            f"`vapo pretrain-critic`; to begin a critic from a language model: --set model.critic={critic}."
        )


def check_critic(config: Config) -> None:
    """Raise ModelError for a path without a model where a critic is named."""
    if config.sections.model.critic is not None:
        check_source(config.sections.model.critic, "critic")
