"""Configurations that tests make of `--set` options."""

from __future__ import annotations

import yaml

from vapo.session.config import Config, resolve
from vapo.session.layers import file_layer, recipe_layer, set_layer


def of(*assignments: str) -> Config:
    """The configuration of the maze's recipe, with options on top."""
    return resolve([recipe_layer("maze"), *map(set_layer, assignments)])


def reread(config: Config, *assignments: str) -> Config:
    """The configuration of a run's config.yaml, with options on top."""
    return resolve([file_layer("file", yaml.safe_load(config.to_yaml())), *map(set_layer, assignments)])
