"""Which folder of a run `vapo export` copies. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from vapo.errors import ConfigError
from vapo.models.model_source import ADAPTER_CONFIG, check_source
from vapo.session.evaluated_run import find_model, is_run

CHECKPOINTS = "checkpoints"


def default_target(folder: Path, dtype: str) -> Path:
    """Where an export of a folder goes if nobody says where: beside it, or into the run for one of a checkpoint, which
    is deleted when newer ones come."""
    checkpoint = folder.parent
    if checkpoint.parent.name == CHECKPOINTS:
        return checkpoint.parent.parent / f"{folder.name}-{checkpoint.name}-{dtype}"
    return folder.with_name(f"{folder.name}-{dtype}")


def exported_folder(run: Path, *, critic: bool, adapter: bool) -> Path:
    """The policy's folder (or the critic's; or that of the adapters) of a run or of one of its checkpoints.

    Raises ConfigError where the run has none, ModelError for a folder that is no model.
    """
    if not run.exists():
        raise ConfigError(f"{run} does not exist. Check the path.")
    policy = Path(find_model(str(run)).folder)
    check_source(policy, "policy")
    network = "critic" if critic else "policy"
    folder = policy.with_name("critic") if critic else policy
    of_checkpoint = policy.parent.parent.name == CHECKPOINTS
    if adapter:
        folder = folder if of_checkpoint else folder.with_name(f"{network}_adapter")
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ConfigError(
                f"{run} has no adapters of the {network}: they come with model.{network}_lora. Leave out --adapter."
            )
    if not folder.is_dir():
        raise ConfigError(f"{run} has no {network}. Its method may train none, or the run has not ended.")
    if critic and not is_run(policy.parent) and not of_checkpoint:
        raise ConfigError(f"{run} belongs to no run. Give the run directory whose critic is wanted.")
    return folder
