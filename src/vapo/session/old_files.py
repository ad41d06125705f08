"""Settings files that vapo 0.1 wrote, read as what they chose.

0.1 wrote the method spelled out in full beside the sizes it came from, so one number stood under two names. What is
spelled out is what ran: it wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vapo.algo.presets import PRESETS, without_all
from vapo.algo.sizes import fields_of, without_sizes
from vapo.errors import ConfigError
from vapo.json_text import flatten

_SPELLED_OUT = ("sampling", "credit", "clip", "reduction", "optimization")


def modernised(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under today's names; those that need no change stay as they are."""
    values = dict(values)
    rollout = values.get("rollout")
    if isinstance(rollout, Mapping):
        values["rollout"] = _rollout(dict(rollout))
    algorithm = values.get("algorithm")
    if isinstance(algorithm, Mapping) and _is_spelled_out(algorithm):
        values["algorithm"], sizes = _chosen(dict(algorithm), values.get("trainer") or {})
        values["trainer"] = {**(values.get("trainer") or {}), **sizes}
    return values


def todays(effective: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's effective settings as they would be kept today.

    λ's share was a field of the method and is algorithm.k. Before there was `trainer.scoring`, every token was scored.
    """
    if isinstance(trainer := effective.get("trainer"), Mapping):
        effective = {**effective, "trainer": {"scoring": "all", **trainer}}
    algorithm = dict(effective["algorithm"])
    credit = dict(algorithm["credit"])
    rule = dict(credit.get("policy_lambda") or {})
    if "k" not in rule:
        return effective
    algorithm |= {"k": rule.pop("k"), "credit": {**credit, "policy_lambda": rule}}
    return {**effective, "algorithm": algorithm}


def _is_spelled_out(algorithm: Mapping[str, Any]) -> bool:
    """Whether the whole method stands there, sizes too, as 0.1 wrote it."""
    parts = [algorithm.get(name) for name in _SPELLED_OUT]
    sampling, optimization = algorithm.get("sampling"), algorithm.get("optimization")
    return (
        all(part is not None for part in parts)
        and isinstance(sampling, Mapping)
        and isinstance(optimization, Mapping)
        and {"prompts", "per_prompt"} <= sampling.keys()
        and {"minibatch", "actor_lr", "critic_lr", "warmup_steps"} <= optimization.keys()
    )


def _rollout(rollout: dict[str, Any]) -> dict[str, Any]:
    if isinstance(engine := rollout.get("engine"), str):
        rollout["engine"] = {"kind": engine}
    if "slots" in rollout and "engine" in rollout:  # 0.1 always wrote both
        rollout["engine"] = {**rollout["engine"], "slots": rollout.pop("slots")}
    return rollout


def _chosen(algorithm: dict[str, Any], trainer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(preset, without, alpha or k, and changed fields; sizes) of a method that is spelled out."""
    preset, removed = algorithm.pop("preset", "vapo"), list(algorithm.pop("without", None) or [])
    alpha = algorithm.pop("alpha", None)
    if preset not in PRESETS:
        raise ConfigError(f"No preset is called {preset!r}. There are: {', '.join(PRESETS)}.")
    fields = _renamed(algorithm)
    base = dict(flatten(fields_of(without_all(PRESETS[preset], removed))))
    kept = {key: value for key, value in flatten(without_sizes(fields)) if key not in base or base[key] != value}
    chosen: dict[str, Any] = {"preset": preset, "without": removed}
    rule = (fields["credit"].get("policy_lambda") or {}) if isinstance(fields["credit"], Mapping) else {}
    if (alpha := rule.get("alpha", alpha)) is not None:
        chosen["alpha"] = alpha
    if "k" in rule:
        chosen["k"] = rule["k"]
    for key, value in kept.items():
        _put(chosen, key, value)
    return chosen, _sizes(fields, trainer)


def _sizes(fields: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    sampling, optimization = fields["sampling"], fields["optimization"]
    sizes = {
        "samples_per_step": sampling["prompts"] * sampling["per_prompt"],
        "minibatch_size": optimization["minibatch"],
        "actor_lr": optimization["actor_lr"],
        "critic_lr": optimization["critic_lr"],
        "warmup_steps": optimization["warmup_steps"],
    }
    if sampling["per_prompt"] > 1:
        sizes["group_size"] = sampling["per_prompt"]
    # 0 may mean that the technique is taken away: what was chosen stays
    if (steps := fields["credit"].get("pretraining_steps")) or trainer.get("pretraining_steps") is None:
        sizes["pretraining_steps"] = steps
    return sizes


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """The tag of every union is `kind`; the dual clip is a member of its own."""
    fields = {key: dict(value) if isinstance(value, Mapping) else value for key, value in fields.items()}
    for name in ("policy_lambda", "critic_lambda"):
        rule = fields["credit"].get(name)
        if isinstance(rule, Mapping) and "rule" in rule:
            fields["credit"][name] = {("kind" if key == "rule" else key): value for key, value in rule.items()}
    if "kind" not in fields["clip"]:
        dual = fields["clip"].pop("dual", None)
        fields["clip"] |= {"kind": "clip"} if dual is None else {"c": dual, "kind": "dual"}
    if fields["credit"].get("kind") == "gae":
        fields["credit"].setdefault("head", {"kind": "linear"})
    return fields


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value
