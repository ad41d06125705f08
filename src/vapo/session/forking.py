"""A run that goes on under other settings from a checkpoint of another one, in a folder of its own."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vapo.durability import checkpoint
from vapo.errors import ConfigError, command
from vapo.session.layers import SOURCES
from vapo.session.run_dirs import METHOD, check_folder, from_its_networks

CHECKPOINTS = "checkpoints"
LOGS = ("metrics.jsonl", "events.jsonl", "evaluations.jsonl")
SETTINGS = (SOURCES, METHOD, "environment.json", "config.yaml")
"""The last one makes a folder a run."""


def checkpoint_of(run: Path, step: int | None, steps: int, pretraining_steps: int = 0) -> str:
    """The name of the run's checkpoint of joint step `step`, from which a fork trains to `steps`; with `steps` 0, which
    pretrains a critic alone, to `pretraining_steps`.

    `step` None takes the newest that is not damaged. Raises ConfigError for a step without a kept and healthy
    checkpoint, and where nothing is left to train.
    """
    kept = checkpoint.names(run / CHECKPOINTS)
    if not kept:
        raise ConfigError(
            f"{run} has no checkpoint to go on from. Start a new run with its settings: {from_its_networks(run)}"
        )
    wanted = [name for name in kept if step is None or _step(name) == step]
    if not wanted:
        known = [str(_step(other)) for other in sorted(kept) if _step(other)]
        raise ConfigError(
            f"{run} keeps no checkpoint of step {step}; there are those of {', '.join(known) or 'no step'}. Take "
            "one of them, or keep more with checkpoint.keep and checkpoint.every."
        )
    name = _first_healthy(run, wanted, others=len(wanted) < len(kept))
    if steps == 0 and _pretraining_step(name) >= pretraining_steps:
        critic = run / "critic"
        fix = (
            f"Train a policy with its critic: {command('train', run / 'config.yaml', '--critic', critic)} "
            "--set trainer.steps=N"
            if critic.is_dir()
            else f"Let it write its critic first: {command('resume', run)}"
        )
        raise ConfigError(f"{run} pretrains a critic alone (trainer.steps=0), and has done it. {fix}")
    if 0 < steps <= _step(name):
        raise ConfigError(
            f"The checkpoint of step {_step(name)} is the run's last, with trainer.steps={steps}: nothing is left to "
            f"train. Take an earlier --step, or go further: --set trainer.steps={2 * steps}."
        )
    return name


def _first_healthy(run: Path, names: Sequence[str], *, others: bool) -> str:
    """The first of these checkpoints that is as it was saved. Raises ConfigError if none is; `others` are kept, too."""
    damaged = []
    for name in names:
        if not (found := checkpoint.problems(run / CHECKPOINTS / name)):
            return name
        damaged.append(f"{name}: {found[0]}")
    fix = "Take another --step, or start" if others else "Start"
    raise ConfigError(
        f"{run} has no healthy checkpoint to go on from here ({'; '.join(damaged)}). "
        f"{fix} a new run with its settings: {from_its_networks(run)}"
    )


def fork(run: Path, name: str, path: Path) -> Claim:
    """Copy a run as its checkpoint of that name has it to the new folder `path`, and return the claim to that folder.

    The copy is to be resumed, which cuts its logs to that step. Raises ConfigError for a `path` that is not empty, and
    where something cannot be copied; then nothing is left of it.
    """
    try:
        claim = _claim(path)
        try:
            _copy(run, name, path)
        except BaseException:
            claim.remove()
            raise
    except OSError as error:
        raise ConfigError(
            f"Cannot copy {run} to {path}: {_reason(error)}. Free space or mend the file, or choose another --run-dir."
        ) from error
    return claim


@dataclass(frozen=True)
class Claim:
    """A folder that this process fills: no other fork copies into it."""

    path: Path
    entries: frozenset[str] | None
    """The names of what was in the folder before; None if the folder is new."""

    def remove(self) -> None:
        """Remove what came into the folder since; a folder that was there before stays, because a shell may stand in
        it."""
        if self.entries is None:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for entry in self.path.iterdir():
            if entry.name in self.entries:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _claim(path: Path) -> Claim:
    """Begin in a new or empty folder. Raises ConfigError where another process has begun there; what is there stays."""
    check_folder(path)
    entries = frozenset(entry.name for entry in path.iterdir()) if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if entries is None:
            path.mkdir()
        (path / CHECKPOINTS).mkdir()  # only one of two processes that found the same empty folder can do it
    except FileExistsError as error:
        raise ConfigError(f"Another process has begun to write to {path}. Choose another --run-dir.") from error
    return Claim(path, entries)


def _copy(run: Path, name: str, path: Path) -> None:
    shutil.copytree(run / CHECKPOINTS / name, path / CHECKPOINTS / _plain(name))
    if (run / "rollouts").is_dir():
        shutil.copytree(run / "rollouts", path / "rollouts", ignore=_later(name))
    for file in (*LOGS, *SETTINGS):
        if (run / file).exists():
            shutil.copy2(run / file, path / file)


def _reason(error: OSError) -> str:
    """Why a copy failed, in a line: `copytree` gives a list of (source, target, reason), a file each."""
    files = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(files[0][2] if files else error)


def _plain(name: str) -> str:
    """The name of a checkpoint that was just being replaced by a newer one of the same step: `step_000003.old`."""
    return name.removesuffix(".old")


def _step(name: str) -> int:
    """The joint step of a checkpoint; 0 during value pretraining."""
    return int(_plain(name).removeprefix("step_")) if name.startswith("step_") else 0


def _pretraining_step(name: str) -> float:
    """The step of value pretraining of a checkpoint; infinity for one of joint training, which comes after it."""
    return int(_plain(name).removeprefix("pretrain_")) if name.startswith("pretrain_") else math.inf


def _later(name: str) -> Callable[[str, list[str]], list[str]]:
    """Leaves out the rollouts of steps after the checkpoint."""

    def order(step: str) -> tuple[int, float]:
        return _step(step), _pretraining_step(step)

    def is_later(file: str) -> bool:
        step = file.split(".")[0]
        return bool(re.fullmatch(r"(step|pretrain)_\d+", step)) and order(step) > order(name)

    return lambda _, files: [file for file in files if is_later(file)]
