"""The methods of the paper's table in its order, and labels for runs of one method with different settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

PAPER: dict[str, int | None] = {
    "ppo": 5,
    "vc-ppo": None,
    "grpo": 47,  # the table's "R1-Zero-Qwen-32B"
    "dapo": 50,
    "vapo": 60,
    "vapo without value-pretraining": 11,
    "vapo without decoupled-gae": 33,
    "vapo without length-adaptive-gae": 45,
    "vapo without token-level-loss": 53,
    "vapo without clip-higher": 46,
    "vapo without positive-lm": 54,
    "vapo without group-sampling": 55,
}
"""The paper's avg@32 in percent on AIME 2024, trained from Qwen2.5-32B, in the order of our tables; None where the
paper has no number. Source: VAPO, arXiv:2504.05118, Table 1."""

LADDER = ("ppo", "vc-ppo", "grpo", "dapo", "vapo")
"""The main methods of the comparison; all others are variations of one of them."""

COSMETIC = {
    "checkpoint",
    "guards",
    "evaluation",  # its effect on the score is in `set` and k, which are checked separately
    "scale",
    "seed",
    "model.gradient_checkpointing",
    "model.policy",  # the base, which differs between runs of a method like the seed
    "rollout.engine.graphs",
    "rollout.engine.slots",
    "trackers",
    "trainer.layout",
    "trainer.micro_batch_tokens",
    "trainer.pretraining_ready",
    "trainer.save_rollouts_every",
    "trainer.save_rollouts_in_full",
}
"""Settings and sections that do not define the method."""


def table_order(method: str) -> tuple[int, str]:
    """The sort key of a method: the order of the paper's table, then other methods by name."""
    known = list(PAPER)
    return (known.index(method) if method in known else len(known), method)


def method_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """The dotted settings that define the method, as text."""
    kept = {
        key: str(value)
        for key, value in settings.items()
        if not any(key == cosmetic or key.startswith(f"{cosmetic}.") for cosmetic in COSMETIC)
    }
    if "model.critic" in kept:  # the path of a shared critic differs between bases; only its presence counts
        kept["model.critic"] = "None" if settings["model.critic"] is None else "given"
    return kept


def distinct_labels(labels: Sequence[str], settings: Sequence[Mapping[str, str]]) -> list[str]:
    """One label per run; if runs with the same label differ in settings, the label gets those settings.

    `settings[i]` are the `method_settings` of run i. Example: two runs "vapo" that differ in
    `trainer.actor_lr` become "vapo (trainer.actor_lr=0.0001)" and "vapo (trainer.actor_lr=0.0003)".
    """
    differing = {label: _differing_keys([s for a, s in zip(labels, settings, strict=True) if a == label])
                 for label in set(labels)}  # fmt: skip
    named = []
    for label, own in zip(labels, settings, strict=True):
        differences = ", ".join(f"{key}={own.get(key, 'not set')}" for key in differing[label])
        named.append(f"{label} ({differences})" if differences else label)
    return named


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share, so that a page does not depend on the machine.

    >>> short_names(["/home/a/grid/vapo/0", "/home/a/grid/dapo/0"]), short_names(["/home/a/base"]), short_names(["x"])
    (['vapo/0', 'dapo/0'], ['base'], ['x'])
    """
    parts = [PurePath(path).parts for path in paths]
    shortest = min((len(p) for p in parts), default=0)
    shared = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest)
    # keep the last part even if a path occurs twice or contains another
    return ["/".join(p[min(shared, shortest - 1) :]) for p in parts]


def _differing_keys(group: Sequence[Mapping[str, str]]) -> list[str]:
    # a setting that some runs lack did not exist in their version; a task lists only the options that were set
    keys = sorted({key for settings in group for key in settings})
    keys = [key for key in keys if key.startswith("task.") or all(key in settings for settings in group)]
    differing = {key for key in keys if len({settings.get(key) for settings in group}) > 1}
    return [key for key in keys if key in differing]
