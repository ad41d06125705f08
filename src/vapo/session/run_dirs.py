"""Checks of run directories by their files: free for a new run, complete for a resume, and the run's configuration.

Needs no torch, so that a wrong path is reported at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vapo.durability import checkpoint
from vapo.errors import ConfigError, command
from vapo.json_text import flatten
from vapo.session.config import Config, resolve
from vapo.session.layers import SOURCES, Layer, file_layer, read_yaml, with_sources
from vapo.session.yaml_text import yaml_line
from vapo.tasks.catalog import is_known
from vapo.types import Task

METHOD = "method.yaml"
LEFTOVERS = (
    checkpoint.LOCK,
    "vllm.log",
    *(name for file in ("environment.json", SOURCES, METHOD) for name in (file, f".{file}.tmp")),
    ".config.yaml.tmp",
)
"""What a run leaves that was killed before it began."""


def check_folder(path: Path) -> None:
    """Raise ConfigError unless `path` is a new or empty folder that can be written; leaves nothing behind."""
    if path.is_file():
        raise ConfigError(f"{path} is a file, and a run needs a folder. Choose another --run-dir.")
    if path.exists() and any(p.name not in LEFTOVERS for p in path.iterdir()):
        is_run = (path / "config.yaml").exists()
        fix = (
            f"Choose another --run-dir, or go on with: {command('resume', path)}"
            if is_run
            else "Choose another --run-dir."
        )
        raise ConfigError(f"The run directory {path} is not empty. {fix}")
    _check_writable(path, "--run-dir")


def check_output_folder(path: Path) -> None:
    """`check_folder` for the `--out` of a command that is no run."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder. Choose another --out.")
    _check_writable(path, "--out")


def _check_writable(path: Path, option: str) -> None:
    parent = next(p for p in [path, *path.parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"Cannot write to {parent}, where {path} would be. Choose another {option}.")


def default_run_dir(config: Config) -> Path:
    """runs/<task>-<method>-seed<n>, with a number behind it if that is taken; never outside of runs/."""
    method = "-without-".join([config.preset, *config.without]) + ("-changed" if config.changed else "")
    stem = re.sub(r"[^\w.-]+", "-", f"{config.sections.task.name}-{method}-seed{config.sections.seed}").lstrip(".-")
    path, number = Path("runs") / stem, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


def load_run_config(run_dir: Path, changes: Sequence[Layer] = ()) -> Config:
    """The configuration a run was started with, and what is laid over it.

    Raises ConfigError for changes that cannot be made to a run that has begun.
    """
    for layer in changes:
        for key, _ in flatten(layer.values):
            if key in ("algorithm.preset", "algorithm.without"):
                raise ConfigError(f"{key} makes another method, with other networks: start a new run for it.")
    own = file_layer("run", read_yaml(run_dir / "config.yaml"))
    sources = run_dir / SOURCES
    kept = with_sources(own, json.loads(sources.read_text())) if sources.exists() else [own]
    config = resolve([*kept, *changes])
    if changes and checkpoint.names(run_dir / "checkpoints"):
        _refuse_other_networks(run_dir, config)
    return config


def refuse_other_task(run_dir: Path, changed: Config) -> None:
    """Raise ConfigError where a run would go on with another task: its prompts, evaluations and counters are the old
    one's."""
    before, after = _own_settings(run_dir).get("task.name"), changed.sections.task.name
    if before not in (None, after):
        fix = "Finish the run first, then train on it from the run's networks."
        if (run_dir / "policy").is_dir():
            networks = ["--set", f"model.policy={run_dir / 'policy'}"]
            networks += ["--critic", str(run_dir / "critic")] if (run_dir / "critic").is_dir() else []
            fix = f"Train on it from the run's networks: {command('train', after, *networks)}"
        raise ConfigError(f"task.name={after} is another task than {run_dir} has ({before}). {fix}")


def _refuse_other_networks(run_dir: Path, changed: Config) -> None:
    """Raise ConfigError for another source of a network whose weights come from the checkpoint, whole."""
    before, after = _own_settings(run_dir), changed.sections.model
    adapted = {"policy": after.policy_lora, "critic": after.critic_lora}
    adapted["policy"] = adapted["policy"] or (after.critic is None and adapted["critic"])  # then the critic's base
    for name, adapters in adapted.items():
        key, value = f"model.{name}", getattr(after, name)
        if not adapters and key in before and value != before[key]:
            chosen = f"{key}={yaml_line(value)}"
            raise ConfigError(
                f"{chosen} would have no effect: {run_dir} has a checkpoint, and its networks go on from there. Start "
                f"a new run for it: {command('train', run_dir / 'config.yaml', '--set', chosen)}"
            )


def _own_settings(run_dir: Path) -> dict[str, Any]:
    """The settings in config.yaml by dotted key, as they are: a change may mend what no run could begin with."""
    return dict(flatten(read_yaml(run_dir / "config.yaml")))


def check_run(run_dir: Path) -> None:
    """Raise ConfigError for a folder that is no run."""
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.yaml. Check the path.")


def config_to_resume(run_dir: Path, task: Task | None = None, changes: Sequence[Layer] = ()) -> Config:
    """The configuration under which a run goes on, with `changes` laid over its own.

    Raises ConfigError if the folder is no run, if the run was trained on another task than the one given or needs one,
    or if it has ended and kept its weights only.
    """
    check_run(run_dir)
    _refuse_weights_only(run_dir)
    config = load_run_config(run_dir, changes)
    if config.sections.model.dtype == "auto":
        raise ConfigError("model.dtype=auto is chosen when a run begins. Set it to float32 or bfloat16 to change it.")
    name = config.sections.task.name
    if task is None and not is_known(name):
        raise ConfigError(
            f"{run_dir} was trained on a task of your own, {name!r}. "
            "Resume it from Python: vapo.resume(run_dir, task=...), or where a VAPOTrainer made it, "
            "trainer.train(resume_from_checkpoint=True)."
        )
    if task is None and checkpoint.names(run_dir / "checkpoints"):
        refuse_other_task(run_dir, config)
    if task is not None and task.name != name:
        raise ConfigError(f"{run_dir} was trained on the task {name!r}, not on {task.name!r}. Give it that one.")
    return config


def kept_weights_only(run_dir: Path) -> bool:
    """Whether a run has ended under checkpoint.final=weights and deleted its checkpoints."""
    ended = (run_dir / "policy").exists() and not (run_dir / "checkpoints").exists()
    return ended and load_run_config(run_dir).sections.checkpoint.final == "weights"


def _refuse_weights_only(run_dir: Path) -> None:
    """Raise ConfigError for a run that kept its weights only: it would start over, logs included."""
    if kept_weights_only(run_dir):
        shutil.rmtree(run_dir / ".checkpoints.gone", ignore_errors=True)  # of a kill while they were deleted
        raise ConfigError(
            f"{run_dir} has ended and kept its weights only (checkpoint.final=weights), so it cannot be made longer. "
            f"Start a new run from them: {from_its_networks(run_dir)}"
        )


def from_its_networks(run_dir: Path) -> str:
    """The command of a new run with a run's settings, which starts from its trained networks where they are there."""
    options = ["--set", f"model.policy={run_dir / 'policy'}"] if (run_dir / "policy").exists() else []
    options += ["--critic", str(run_dir / "critic")] if (run_dir / "critic").exists() else []
    return command("train", run_dir / "config.yaml", *options)
