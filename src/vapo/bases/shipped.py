"""Finds the base models that ship with the package. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from vapo.errors import ModelError

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def builtin_model(task_name: str, options: object = None) -> Path:
    """The folder of the base model shipped for a built-in task, in Hugging Face format.

    `options` are the task's; if given, the model must have been trained for them. Raises ModelError if no model ships
    for this name or these options.
    """
    folder = ASSETS / task_name
    if task_name.isidentifier() and (folder / "config.json").is_file():
        if options is not None:
            _check_options(task_name, folder, options)
        return folder
    shipped = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    raise ModelError(
        f"No base model ships for task {task_name!r}; there is one for: {', '.join(shipped) or 'none'}. "
        "Set model.policy to a folder or a hub id, or make a base model for the task first."
    )


def _check_options(task_name: str, folder: Path, options: object) -> None:
    made_for = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["task_options"]
    wanted = plain_options(options)
    if wanted != made_for:
        different = sorted(key for key in {*wanted, *made_for} if wanted.get(key) != made_for.get(key))
        differences = ", ".join(f"{key}={wanted.get(key)} (the model has {made_for.get(key)})" for key in different)
        raise ModelError(
            f"The base model shipped for {task_name!r} was made for other task options: {differences}. "
            "Make a base model for these options, or use the options of the model."
        )


def plain_options(value: object) -> dict[str, Any]:
    """A dataclass as a dictionary; empty for anything else."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else {}
