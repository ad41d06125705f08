"""The outcome of a cell, in its `cell.json`: a cell's folder is a run directory with this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, DivergedError, StoppedError, counted
from vapo.json_text import flatten, json_text
from vapo.reports.runfiles import number, read_run
from vapo.session.config import Config
from vapo.session.inputs import with_whole_paths
from vapo.session.run_dirs import load_run_config
from vapo.study.cell_identity import CRITIC, setting_differences
from vapo.study.cells import SIZES, Cell, config_differences
from vapo.study.comparison.compared_run import Outcome


def read_card(folder: Path) -> dict[str, Any]:
    """The content of cell.json; empty if it is missing or damaged, so that the cell is resumed."""
    try:
        card = json.loads((folder / "cell.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def ended(cell: Cell) -> bool:
    """Whether the cell's run has finished or diverged."""
    return read_card(cell.folder).get("outcome") in ("finished", "diverged")


def outcome_of(code: int) -> Outcome:
    """The outcome of a run, from its exit code. Runs that a signal stopped are unfinished."""
    if code in (StoppedError.exit_code, 130) or code < 0:
        return "unfinished"
    if code == 0:
        return "finished"
    return "diverged" if code == DivergedError.exit_code else "failed"


def critic_card(cell: Cell) -> dict[str, Any] | None:
    """The cost of the cell's shared critic, including the critics it started from; None without one.

    The cell's own counts do not contain this cost.
    """
    if cell.critic is None:
        return None
    rows, before = read_run(cell.critic).metrics, read_card(cell.critic).get("critic") or {}
    last = rows[-1] if rows else {}
    own = {
        "samples": int(last.get("num_samples", 0)),
        "tokens": int(last.get("num_tokens", 0)),
        "seconds": sum(number(row.get("step_time")) for row in rows),
        "gradient_steps": sum(int(row.get("pretrain/gradient_steps", 0)) for row in rows),
    }
    return {
        "name": read_card(cell.critic).get("method", cell.critic.name),
        **{key: value + before.get(key, 0) for key, value in own.items()},
        "explained_variance": last.get("pretrain/explained_variance"),
    }


def finished_methods(folders: Sequence[Path]) -> set[str]:
    """The methods that have a finished run in one of these folders."""
    return {card["method"] for card in map(read_card, folders) if card.get("outcome") == "finished"}


def check_same(cell: Cell) -> None:
    """Raise ConfigError if the cell's folder holds a run with other settings than the study wants."""
    if not (cell.folder / "config.yaml").is_file():
        return
    found = with_whole_paths(load_run_config(cell.folder))
    different = [*config_differences(_with_paths_of(found, cell.config), found), *_other_sizes(cell)]
    if different:
        shown = "; ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        users = " and those of the runs that start from it" if cell.kind == "critic" else ""
        raise ConfigError(
            f"{cell.folder} holds a run with other settings ({shown}). Choose another --out, or delete that "
            f"folder{users}."
        )


def check_same_critic(cells: Sequence[Cell]) -> None:
    """Raise ConfigError if runs in the cells' folders started from a critic with other settings than the study's."""
    others = [cell for cell in cells if _has_other_critic(cell)]
    if others:
        names = ", ".join(cell.folder.name for cell in others)
        raise ConfigError(
            f"{counted(len(others), 'run')} in {others[0].folder.parent} started from a critic with other settings "
            f"than the study's: {names}. Choose another --out, or delete their folders to run them again."
        )


def _has_other_critic(cell: Cell) -> bool:
    settings = _settings_of(cell)
    if cell.critic_hash is None or settings.get(CRITIC) is None or not (cell.folder / "config.yaml").is_file():
        return False
    # a version of vapo with more settings has other hashes of the same critic
    return settings.keys() == cell.settings.keys() and settings[CRITIC] != cell.critic_hash


def _other_sizes(cell: Cell) -> list[str]:
    """The differences in sizes that the study leaves to the preset; config.yaml may hold one that the model brought."""
    settings, wanted, chosen = _settings_of(cell), cell.settings, dict(flatten(cell.config.as_dict()))
    keys = {size for size in SIZES & settings.keys() & wanted.keys() if chosen.get(size) is None}
    return setting_differences({key: wanted[key] for key in keys}, {key: settings[key] for key in keys})


def _settings_of(cell: Cell) -> Mapping[str, Any]:
    """The settings in cell.json; empty without."""
    settings = read_card(cell.folder).get("settings")
    return settings if isinstance(settings, dict) else {}


def _with_paths_of(found: Config, wanted: Config) -> Config:
    """The wanted settings with the paths as a run stores them: absolute, also where a model has been deleted since."""
    whole = with_whole_paths(wanted)
    model, stored = whole.sections.model, found.sections.model
    if model.critic and stored.critic == str(Path(model.critic).resolve()):
        model = replace(model, critic=stored.critic)
    if stored.policy == str(Path(model.policy).resolve()):
        model = replace(model, policy=stored.policy)
    return replace(whole, sections=whole.sections.model_copy(update={"model": model}))


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json_text(data, indent=1) + "\n")
    temporary.replace(path)
