"""The settings that decide the result of a cell: two machines that agree on them run the same cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from vapo.json_text import flatten, json_text
from vapo.session.config import Config
from vapo.session.path_checks import TASK_FILES
from vapo.types import stable_hash

CRITIC = "shared critic"
"""The entry with the hash of the critic that a run starts from."""
MACHINE = (
    "checkpoint",
    "guards.watchdog",
    "guards.stuck_factor",
    "guards.stuck_floor_s",
    "rollout.engine.graphs",
    "rollout.engine.slots",
    "scale",
    "trackers",
    "trainer.layout",
    "trainer.micro_batch_tokens",
    "trainer.save_rollouts_every",
    "trainer.save_rollouts_in_full",
)
"""Settings and sections that fit a run to its machine: they change its speed, its files and the rounding of sums."""
IDENTITY = ("seed", "model.policy", "model.critic")
"""Settings that a cell names otherwise: as its seed, its base and the hash of its critic."""


def deciding_settings(config: Config, critic: str | None) -> dict[str, Any]:
    """The settings and the expanded method by dotted key, as JSON holds them, with the hash of the shared critic.

    Seed and base are left out, because a cell names them itself; so is what depends on the machine. Of a file of the
    task only the name counts.
    """
    kept = {key: value for key, value in flatten(config.effective()) if not _is_in(key, (*MACHINE, *IDENTITY))}
    for name in TASK_FILES:
        if isinstance(value := kept.get(f"task.{name}"), str):
            kept[f"task.{name}"] = PurePath(value).name
    if ":" in kept["task.name"]:
        kept["task.name"] = PurePath(kept["task.name"]).name
    return json.loads(json_text({**kept, CRITIC: critic}))


def settings_hash(settings: Mapping[str, Any], *more: object) -> str:
    """16 hex digits for settings and more parts of an identity, equal on every machine."""
    return f"{stable_hash(json_text(settings, sort_keys=True), *more):016x}"


def setting_differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """`key: found → wanted` for every setting in which two identities differ."""
    keys = sorted(wanted.keys() | found.keys())
    return [
        f"{key}: {found.get(key, 'not set')} → {wanted.get(key, 'not set')}"
        for key in keys
        if (key in found, found.get(key)) != (key in wanted, wanted.get(key))
    ]


def _is_in(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)
