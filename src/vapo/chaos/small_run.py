"""The runs for trials: a small one on the built-in maze with both phases, which takes about a second, and a long one.

The long run has the recipe's response lengths. Rounding may depend on the memory address of a tensor, and the small
run's matrix products are too small to show it.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from vapo.durability.checkpoint import MANIFEST, sha256
from vapo.session.config import Config, resolve
from vapo.session.layers import file_layer, recipe_layer

SETTINGS: dict[str, Any] = {
    "algorithm": {"kl": {"coef": 0.01, "refresh_every": 4}},  # makes a reference policy part of the state
    "rollout": {"max_response_tokens": 24},
    "trainer": {
        "steps": 4,
        "samples_per_step": 16,
        "group_size": 4,
        "minibatch_size": 8,
        "pretraining_steps": 2,
        "pretraining_passes": 2,
        "pretraining_heldout": 8,
        "pretraining_ready": -1.0e9,
        "save_rollouts_every": 2,
    },
    "evaluation": {"every": 2, "prompts": 8, "samples_per_prompt": 1, "final_samples_per_prompt": 2},
    "checkpoint": {"every": 1, "keep": 2},
    "guards": {"watchdog": False},
    "scale": {"threads": 1},
}
LONGER: dict[str, Any] = {
    "rollout": {"max_response_tokens": None},  # the task's own
    "trainer": {"steps": 8, "samples_per_step": 32, "minibatch_size": 16},
}
"""The settings of the long run that differ from `SETTINGS`."""
AHEAD: dict[str, Any] = {"trainer": {"max_staleness": 1}}
"""The settings of the small run that samples each rollout while it trains on the one before."""
CLOCKS = ("time/", "throughput/", "mfu/", "memory/", "step_time")
FILES = ("metrics.jsonl", "evaluations.jsonl")


def small_config(*layers: dict[str, Any]) -> Config:
    """The small run's configuration."""
    small = [file_layer("chaos", SETTINGS), *(file_layer("trial", layer) for layer in layers)]
    return resolve([recipe_layer("maze"), *small])


def long_config() -> Config:
    """The long run's configuration."""
    return small_config(LONGER)


def fingerprint(run: Path) -> dict[str, Any]:
    """The results that must be equal for killed and undisturbed runs.

    These are the log lines without times, the counters, the SHA-256 of both networks, both optimizers, the reference
    and the finished models, and the rollouts' text.
    """
    newest = max((run / "checkpoints").iterdir(), key=_serial)
    files = json.loads((newest / MANIFEST).read_text())["files"]
    found: dict[str, Any] = {f"checkpoint/{n}": e["sha256"] for n, e in files.items() if n != "state.json"}
    state = json.loads((newest / "state.json").read_text())
    del state["log_bytes"]  # events contain times and resumes
    found |= {f"state/{key}": value for key, value in state.items()}
    found |= {name: [_timeless(line) for line in (run / name).read_text().splitlines()] for name in FILES}
    for name in ("policy", "critic"):
        found[name] = sha256(run / name / "model.safetensors")
    for path in sorted((run / "rollouts").glob("*.gz")):
        found[f"rollouts/{path.name}"] = gzip.decompress(path.read_bytes()).decode()
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the entries that differ."""
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def _serial(folder: Path) -> int:
    if folder.suffix == ".corrupt" or folder.name.startswith("."):
        return -1
    return int(json.loads((folder / MANIFEST).read_text())["serial"])


def _timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if not key.startswith(CLOCKS)}
