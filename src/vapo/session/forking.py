"""A run that goes on under other settings from a checkpoint of another one, in a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from vapo.durability import checkpoint
from vapo.errors import ConfigError, command
from vapo.session.layers import SOURCES
from vapo.session.run_dirs import METHOD, check_folder

LOGS = ("metrics.jsonl", "events.jsonl", "evaluations.jsonl")
SETTINGS = (SOURCES, METHOD, "environment.json", "config.yaml")
"""The last one makes a folder a run."""


def checkpoint_of(run: Path, step: int | None, steps: int) -> str:
    """The name of the run's checkpoint of joint step `step` (None: the newest), from which a fork trains to `steps`.

    Raises ConfigError for a step without a kept checkpoint, and where nothing is left to train.
    """
    kept = checkpoint.names(run / "checkpoints")
    if not kept:
        raise ConfigError(
            f"{run} has no checkpoint to go on from. Start a new run from its networks: "
            + command("train", "--set", f"model.policy={run / 'policy'}")
        )
    name = kept[0] if step is None else f"step_{step:06d}"
    if name not in kept:
        known = [str(_step(other)) for other in sorted(kept) if _step(other)]
        raise ConfigError(
            f"{run} keeps no checkpoint of step {step}; there are those of {', '.join(known) or 'no step'}. Take "
            "one of them, or keep more with checkpoint.keep and checkpoint.every."
        )
    if _step(name) >= steps:
        raise ConfigError(
            f"The checkpoint of step {_step(name)} is the run's last, with trainer.steps={steps}: nothing is left to "
            f"train. Take an earlier --step, or go further: --set trainer.steps={2 * steps}."
        )
    return name


def fork(run: Path, name: str, path: Path) -> None:
    """Copy a run as its checkpoint of that name has it to the new folder `path`.

    The copy is to be resumed, which cuts its logs to that step. Raises ConfigError for a `path` that is not empty.
    """
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run / "checkpoints" / name, path / "checkpoints" / name)
    if (run / "rollouts").is_dir():
        shutil.copytree(run / "rollouts", path / "rollouts", ignore=_later(name))
    for file in (*LOGS, *SETTINGS):
        if (run / file).exists():
            shutil.copy2(run / file, path / file)


def _step(name: str) -> int:
    """The joint step of a checkpoint; 0 during value pretraining."""
    return int(name.removeprefix("step_")) if name.startswith("step_") else 0


def _later(name: str) -> Callable[[str, list[str]], list[str]]:
    """Leaves out the rollouts of steps after the checkpoint."""
    return lambda _, files: [file for file in files if file.startswith("step_") and file.split(".")[0] > name]
