"""Configurations of the models that the shipped recipes train, as their publishers' config.json has them: a plan needs
no network. Where a folder or the hub can be read, that is taken instead."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from vapo.bases.shipped import builtin_model
from vapo.errors import ModelError
from vapo.models.pretrained import load_config
from vapo.session.config import Config
from vapo.session.layers import recipe_layer
from vapo.session.planning.traced import tracer_of

MODELS = Path(__file__).resolve().parents[2] / "recipes" / "models"


def published() -> dict[str, Path]:
    """Files by hub id."""
    return {path.stem.replace("--", "/"): path for path in sorted(MODELS.glob("*.json"))}


def model_config(source: str | Path, *, offline: bool, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, str]:
    """A model's configuration, and where it is from: its folder or the hub, else the copy that ships here. Offline the
    hub is not asked. ModelError if there is none."""
    shipped = published().get(str(source))
    if Path(source).exists() or not offline:
        try:
            return load_config(source, trust_remote_code=trust_remote_code), str(source)
        except ModelError:
            if shipped is None:
                raise
    if shipped is None:
        raise ModelError(
            f"The configuration of {source} is neither a folder here nor shipped with vapo. Leave out --offline, or "
            f"give a folder with its config.json. Shipped: {', '.join(published())}."
        )
    values = json.loads(shipped.read_text(encoding="utf-8"))
    return AutoConfig.for_model(values.pop("model_type"), **values), f"{source}, as published (shipped copy)"


def recipe_parameters(config: Config, *, offline: bool) -> int | None:
    """Parameters of the model that the sizes of the configuration's recipe were chosen for; None where there is no
    recipe, or its model cannot be read."""
    if config.recipe is None:
        return None
    values = recipe_layer(config.recipe).values
    try:
        source = values.get("model", {}).get("policy") or builtin_model(values["task"]["name"])
        return tracer_of(model_config(source, offline=offline)[0]).size(0, critic=False).parameters
    except ModelError:
        return None
