"""Whether the runs in the folders of cells are those that the study wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, counted
from vapo.json_text import flatten
from vapo.session.config import Config
from vapo.session.inputs import with_whole_paths
from vapo.session.run_dirs import load_run_config
from vapo.study.cell_cards import read_card, started_settings
from vapo.study.cell_identity import CRITIC, setting_differences
from vapo.study.cells import SIZES, Cell, config_differences


def check_folders(cells: Sequence[Cell]) -> None:
    """Raise ConfigError if a cell's folder holds a run with other settings, or one from another critic."""
    for cell in cells:
        check_same(cell)
    check_same_critic(cells)


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
        folders = ", ".join(str(cell.folder) for cell in others)
        raise ConfigError(
            f"{counted(len(others), 'run')} started from a critic with other settings than the study's: {folders}. "
            "Choose another --out, or delete these folders to run them again."
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
    """The settings in cell.json, or those that the run was started with; empty without."""
    settings = read_card(cell.folder).get("settings") or started_settings(cell)
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
