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


def fork(run: Path, step: int | None, path: Path) -> Path:
    """Copy a run as its checkpoint of joint step `step` (None: the newest) has it to the new folder `path`.

    The copy is to be resumed, which cuts its logs to that step.

    Raises ConfigError for a folder that is no run, a step without a kept checkpoint, and a `path` that is not empty.
    """
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is not a run directory: it has no config.yaml. Check the path.")
    kept = checkpoint.names(run / "checkpoints")
    if not kept:
        raise ConfigError(
            f"{run} has no checkpoint to go on from. Start a new run from its networks: "
            + command("train", "--set", f"model.policy={run / 'policy'}")
        )
    name = kept[0] if step is None else f"step_{step:06d}"
    if name not in kept:
        raise ConfigError(
            f"{run} keeps no checkpoint of step {step}; there are {', '.join(sorted(kept))}. Take one of them, or "
            "keep more with checkpoint.keep and checkpoint.every."
        )
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run / "checkpoints" / name, path / "checkpoints" / name)
    if (run / "rollouts").is_dir():
        shutil.copytree(run / "rollouts", path / "rollouts", ignore=_later(name))
    for file in (*LOGS, *SETTINGS):
        if (run / file).exists():
            shutil.copy2(run / file, path / file)
    return path


def _later(name: str) -> Callable[[str, list[str]], list[str]]:
    """Leaves out the rollouts of steps after the checkpoint."""
    return lambda _, files: [file for file in files if file.startswith("step_") and file.split(".")[0] > name]
