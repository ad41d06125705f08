"""The cheapest change with which a run fits: changes are tried in the order of their cost, then several together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from vapo.rollout.engine_settings import VllmEngineSettings
from vapo.session.config import Config

RANK = 32
"""Of the adapters that are tried at last."""
MOST_DEVICES = 64
"""A cluster is tried with up to so many times the devices."""


@dataclass(frozen=True)
class Change:
    """Settings to change, and what the change costs."""

    settings: dict[str, Any]
    cost: str
    devices: int = 1
    """So many times as many machines."""

    @property
    def words(self) -> str:
        """The settings as they are set, and the cost."""
        chosen = [f"--set {key}={value}" for key, value in self.settings.items()]
        if self.devices > 1:
            chosen.append(f"{self.devices} times as many devices")
        return f"{' '.join(chosen)}  ({self.cost})" if self.cost else " ".join(chosen)


def changes(config: Config, longest: int, largest: int, *, ray: bool) -> list[Change]:
    """What can be changed here to need less memory, cheapest first. A micro-batch has `largest` tokens now, and cannot
    have less than the `longest` response."""
    model, engine = config.sections.model, config.sections.rollout.engine
    found: list[Change] = []
    if not model.gradient_checkpointing:
        found.append(Change({"model.gradient_checkpointing": True}, "a third more time in updates; same results"))
    tokens = largest
    while tokens > longest:
        tokens = max(longest, tokens // 4)
        found.append(Change({"trainer.micro_batch_tokens": tokens}, "smaller pieces; same results"))
    if isinstance(engine, VllmEngineSettings):
        share = engine.memory_share
        while share > 0.25:
            share = round(share - 0.1, 2)
            found.append(Change({"rollout.engine.memory_share": share}, "fewer responses sampled at once"))
        if ray:
            wider = 2 * config.sections.scale.tensor_parallel
            found.append(Change({"scale.tensor_parallel": wider}, "engines of more GPUs, half as many"))
    else:
        slots = engine.slots
        while slots > 16:
            slots = max(16, slots // 4)
            found.append(Change({"rollout.engine.slots": slots}, "fewer responses sampled at once; same results"))
    if model.dtype == "float32":
        found.append(Change({"model.dtype": "bfloat16"}, "rounds to 8 bits in passes"))
    if not (config.sections.scale.offload or config.sections.trainer.max_staleness):
        found.append(Change({"scale.offload": True}, "networks wait in host memory in turns; same results"))
    devices = 2
    while ray and devices <= MOST_DEVICES:
        found.append(Change({}, "shards are smaller", devices))
        devices *= 2
    if config.algorithm.has_critic and model.critic_kind == "full":
        found.append(Change({"model.critic_kind": "side"}, "a small critic that reads the policy's states"))
    if not model.policy_lora:
        lora: dict[str, Any] = {"model.policy_lora": RANK}
        if config.algorithm.has_critic and model.critic_kind == "full":
            lora["model.critic_lora"] = RANK
        found.append(Change(lora, "trains adapters only"))
    return found


def cheapest(found: Sequence[Change], fits: Callable[[Change], bool]) -> Change | None:
    """The first change with which it fits; else all up to the first with which they do together; None if it does not
    fit with all of them."""
    together = [_together(found[: n + 1]) for n in range(len(found))]
    if not together or not fits(together[-1]):
        return None
    return next(change for change in (*found, *together) if fits(change))


def _together(found: Sequence[Change]) -> Change:
    settings = {key: value for change in found for key, value in change.settings.items()}
    if settings.get("model.critic_kind") == "side":
        settings.pop("model.critic_lora", None)
    return Change(settings, "together", max(change.devices for change in found))


def changed(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with other values of settings outside of the method."""
    sections = config.sections
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections = sections.model_copy(update={section: _with(getattr(sections, section), name, value)})
    return replace(config, sections=sections)


def _with(holder: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    assert is_dataclass(holder)
    assert first in {f.name for f in fields(holder)}
    return replace(holder, **{first: _with(getattr(holder, first), rest, value) if rest else value})  # type: ignore[type-var]
