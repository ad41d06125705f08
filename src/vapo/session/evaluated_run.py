"""What an evaluation of a trained model takes from the run it belongs to: task, prompt format, limits, weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vapo.durability import checkpoint
from vapo.errors import CheckpointError, ConfigError, command
from vapo.json_text import flatten
from vapo.metrics import Phase
from vapo.models.model_source import check_source
from vapo.session.config import Config, resolve
from vapo.session.layers import Layer, file_layer, merge, source_layers
from vapo.session.run_dirs import load_run_config
from vapo.session.unused import unused_in_evaluation
from vapo.tasks.catalog import is_known

SIGNS_OF_A_RUN = ("metrics.jsonl", "environment.json")
"""One of them lies beside the config.yaml of a run, however early it was stopped."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate."""

    folder: str
    """A folder, a hub id, a .gguf file, or `builtin`."""
    run: Path | None
    """The run directory it belongs to."""
    notes: tuple[str, ...] = ()


def find_model(model: str) -> EvaluatedModel:
    """The model to evaluate: the policy of a run directory or of a checkpoint; any other source as it is.

    Raises ConfigError for a run that has no policy to evaluate yet.
    """
    path = Path(os.path.abspath(model))
    if is_run(path):
        return _model_of(Path(model))
    for run in path.parents[:3]:
        if is_run(run):
            within = path.relative_to(run).parts
            if within == ("policy",) or (len(within) == 3 and within[::2] == ("checkpoints", "policy")):
                return EvaluatedModel(model, run)
            if len(within) == 2 and within[0] == "checkpoints" and (path / "policy").is_dir():
                return EvaluatedModel(str(Path(model) / "policy"), run)
    return EvaluatedModel(model, None)


def evaluation_config(
    model: EvaluatedModel,
    task: str | None,
    settings: Mapping[str, Any],
    changes: Sequence[Layer] = (),
    *,
    uses: Sequence[str] = (),
) -> Config:
    """The configuration of an evaluation: the run's settings, where there is a run, below `settings` and `changes`.

    `uses` are sections that matter besides those of an evaluation.

    `task` is a task's name or a .yaml file; it replaces the run's task, with its options and its response limit. The
    prompt format, the engine and the precision stay the run's. Raises ModelError for a path without a model, and
    ConfigError where nothing names the task: the maze goes with the model shipped for it only.
    """
    if model.folder != "builtin":
        check_source(model.folder, "policy")
    for layer in changes:
        if why := unused_in_evaluation(dict(flatten(layer.values)), uses):
            raise ConfigError(f"{layer.place} {why}")
    layers: list[Layer] = []
    if model.run is not None:
        of_run = load_run_config(model.run).as_dict()
        if task is not None:
            of_run = {**of_run, "task": {}, "rollout": {**of_run["rollout"], "max_response_tokens": None}}
        layers.append(file_layer("run", of_run))
    if task is not None and task.endswith((".yaml", ".yml")):
        layers += source_layers(task)
    elif task is not None:
        settings = merge(settings, {"task": {"name": task}})
    named = task is not None or any(key == "task.name" for layer in changes for key, _ in flatten(layer.values))
    if model.run is None and not named and model.folder != "builtin":
        raise ConfigError(
            f"{model.folder} belongs to no run, so its task is not known. Name one: --task maze, for example; "
            "`vapo tasks` lists them."
        )
    config = resolve([*layers, file_layer("evaluation", settings), *changes])
    name = config.sections.task.name
    if model.run is not None and not named and not is_known(name):
        raise ConfigError(
            f"{model.run} was trained on a task of your own, {name!r}. Name one that can be found: "
            "--task package.module:function; `vapo tasks` lists the others."
        )
    return config


def run_of(folder: str | Path) -> Path | None:
    """The run directory that a folder of weights (a critic/, or one in a checkpoint) belongs to; None if none."""
    path = Path(os.path.abspath(folder))
    return next((run for run in path.parents[:3] if is_run(run)), None)


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory, however early the run was stopped."""
    return (path / "config.yaml").is_file() and any((path / sign).exists() for sign in SIGNS_OF_A_RUN)


def _model_of(run: Path) -> EvaluatedModel:
    """The final policy of a run that has ended; of any other run, the policy of its newest healthy checkpoint."""
    root = run / "checkpoints"
    names = checkpoint.names(root)
    if (run / "policy").is_dir() and (not names or _has_ended(root / names[0])):
        return EvaluatedModel(str(run / "policy"), run)
    healthy = next((name for name in names if not checkpoint.problems(root / name)), None)
    if healthy is None:
        raise ConfigError(
            f"{run} has neither a policy/ nor a healthy checkpoint to evaluate. Take it further: "
            f"{command('resume', run)}"
        )
    note = f"{run} has not ended: this is its checkpoint {healthy}"
    return EvaluatedModel(str(root / healthy / "policy"), run, (note,))


def _has_ended(saved: Path) -> bool:
    """Whether a checkpoint is a run's last one, as far as it can be read: beside a damaged one, policy/ counts."""
    try:
        return checkpoint.read_json(saved, "state.json")["phase"] == Phase.DONE
    except (CheckpointError, KeyError, TypeError):
        return True
