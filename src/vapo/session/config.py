"""One schema for a run: what was chosen, and the method that follows from it.

A number has one name. `Config.as_dict` is what was chosen and reads back to the same configuration; the expanded
method is derived from it, written beside it for people and comparisons, and never read back as settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from vapo.algo.head_ranges import target_range, with_range
from vapo.algo.method import (
    Algorithm,
    Gae,
    LinearHead,
    NoCorrection,
    ProbabilityBound,
    RatioMask,
    Reward,
    TruncatedWeight,
)
from vapo.algo.presets import PRESETS, REMEDIES, TECHNIQUES, without, without_all
from vapo.algo.sizes import NAMES, alpha_is_a_size, fields_of, scaled, sizes_of
from vapo.errors import ConfigError
from vapo.json_text import flatten
from vapo.session.explain import explain, null_given, refuse_booleans
from vapo.session.layers import Layer, Origin, Source, merge
from vapo.session.old_files import modernised
from vapo.session.schema import Choice, Sections, sizes
from vapo.session.suggest import suggestion
from vapo.session.unused import unused
from vapo.session.yaml_text import yaml_lines

_KEYS = str | int | float
"""Types of keys that YAML gives back, besides null."""


class _Method(BaseModel):
    """The method's fields, checked; nested dataclasses inherit `forbid` from here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    algorithm: Algorithm


@dataclass(frozen=True)
class Config:
    """A resolved run configuration. `origins` maps each chosen setting's dotted key to who chose its value."""

    choice: Choice
    sections: Sections
    algorithm: Algorithm
    """The method that runs, derived from the choice and the sizes."""
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Settings of a file that the method has no use for, in words."""
    recipe: str | None = field(default=None, compare=False)
    """The shipped recipe that the settings started from."""

    @property
    def preset(self) -> str:
        """The preset that was chosen."""
        return self.choice.preset

    @property
    def without(self) -> tuple[str, ...]:
        """The techniques that were taken away."""
        return tuple(self.choice.without)

    @property
    def changed(self) -> tuple[str, ...]:
        """Fields of the method that are not the preset's (less the techniques taken away); sizes do not count."""
        ours = dict(flatten(fields_of(self.algorithm)))
        named = without_all(PRESETS[self.preset], self.without)
        # the correction that an engine or stale responses bring is no other method
        preset = dict(flatten(fields_of(corrected(named, self.choice, self.sections))))
        differing = [key for key in {**preset, **ours} if preset.get(key) != ours.get(key)]
        tags = [key.removesuffix(".kind") for key in differing if key.endswith(".kind")]
        # another member of a union is one change, whatever fields it brings
        changes = {*tags, *(key for key in differing if not key.endswith(".kind"))}
        outer = {key for key in changes if not any(key.startswith(f"{tag}.") for tag in tags)}
        return tuple(sorted({*outer, *self._switched_off()}))

    def _switched_off(self) -> Iterator[str]:
        """Sizes that take a technique away: no pretraining where no other critic is given, groups of one."""
        preset = without_all(PRESETS[self.preset], self.without)
        own_critic = isinstance(self.algorithm.credit, Gae) and self.sections.model.critic is None
        if own_critic and preset.pretrains and not self.algorithm.pretrains:
            yield "trainer.pretraining_steps"
        if preset.sampling.per_prompt > 1 and self.algorithm.sampling.per_prompt == 1:
            yield "trainer.group_size"

    @property
    def label(self) -> str:
        """The method that runs, in words: `vapo without clip-higher, changed: credit.gamma`."""
        words = self.preset
        if self.without:
            words += f" without {', '.join(self.without)}"
        if self.changed:
            words += f", changed: {', '.join(self.changed)}"
        return words

    def as_dict(self) -> dict[str, Any]:
        """What was chosen, as plain data that `resolve` reads back to the same configuration."""
        sections = self.sections.model_dump(mode="json")
        sections["task"] = _plain(self.sections.task.model_dump())
        return {"seed": sections.pop("seed"), "algorithm": self.choice.model_dump(mode="json"), **sections}

    def effective(self) -> dict[str, Any]:
        """What runs, as plain data: every setting and every field of the method under its one name.

        For people, comparisons and the check at a resume.
        """
        chosen, derived = self.as_dict(), dataclasses.asdict(sizes_of(self.algorithm))
        rule = {name: derived.pop(name) for name in ("alpha", "k")}
        algorithm = {"preset": self.preset, "without": list(self.without), **rule, **fields_of(self.algorithm)}
        return {**chosen, "algorithm": algorithm, "trainer": {**chosen["trainer"], **derived}}

    def to_yaml(self) -> str:
        """`as_dict` as YAML, each line with its value's origin as a comment."""
        places = {key: origin.place for key, origin in self.origins.items()}
        return "\n".join(yaml_lines(self.as_dict(), places)) + "\n"

    def method_yaml(self) -> str:
        """The label and the expanded method, for people and comparisons."""
        whole = self.effective()
        method = {
            "label": self.label,
            "algorithm": whole["algorithm"],
            "trainer": {name.partition(".")[2]: whole["trainer"][name.partition(".")[2]]
                        for name in NAMES.values() if name.startswith("trainer.")},
        }  # fmt: skip
        head = "# The method that runs, derived from config.yaml; never read back as settings.\n"
        return head + yaml.safe_dump(method, sort_keys=False, width=120)

    def sources(self) -> dict[str, Any]:
        """The recipe, and `key: [source, place]` of all that is no default; `layers.with_sources` reads it back."""
        chosen = {
            key: [origin.source.value, origin.place]
            for key, origin in self.origins.items()
            if origin.source is not Source.DEFAULT
        }
        return {"recipe": self.recipe, "settings": chosen}


def _plain(value: Any) -> Any:
    """The options of a task as plain data. pydantic's JSON makes texts of all keys, and a task may want numbers."""
    if isinstance(value, Mapping):
        return {key if key is None or isinstance(key, _KEYS) else str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return to_jsonable_python(value)


def resolve(layers: Sequence[Layer]) -> Config:
    """The configuration of the layers, later ones winning; raises ConfigError for anything wrong in it."""
    merged: dict[str, Any] = {}
    set_by: dict[str, Origin] = {}
    for layer in layers:
        values = modernised(layer.values)
        merged = merge(merged, values)
        for key, _ in flatten(values):
            set_by[key] = layer.origin
    given = merged.pop("algorithm", None) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"algorithm: must be a mapping like {{preset: vapo}}, got {given!r}.")
    refuse_booleans({**merged, "algorithm": given})
    try:
        sections = Sections.model_validate(merged)
    except ValidationError as error:
        raise explain(error) from error
    if nulls := [key for key, value in given.items() if value is None and key not in Choice.model_fields]:
        raise null_given(f"algorithm.{nulls[0]}")
    try:
        # null is the default, spelled out
        choice = Choice.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise explain(error, "algorithm.") from error
    alpha_from = set_by.get("algorithm.alpha", Origin()).source
    by_share = choice.k is not None and alpha_from in (Source.DEFAULT, Source.RECIPE)
    if by_share or (alpha_from is Source.RECIPE and not alpha_follows_length(choice, sections)):
        choice = choice.model_copy(update={"alpha": None})  # a recipe's is VAPO's at the recipe's length
    algorithm = corrected(_method(choice, sections), choice, sections)
    credit = algorithm.credit
    if isinstance(credit, Gae):
        _check_score_range(credit, algorithm.reward)
        with_range(credit.head, *target_range(algorithm))
        if credit.baseline == "group" and sections.trainer.pretraining_at == "end":
            raise ConfigError(
                "trainer.pretraining_at=end makes a reward model, which learns whole outcomes; with "
                "algorithm.credit.baseline=group the critic learns what the group's mean leaves. Set baseline to none."
            )
    if isinstance(credit, Gae) and credit.privileged is not None and sections.model.critic_kind == "side":
        raise ConfigError(
            "algorithm.credit.privileged needs a critic that reads tokens; a side critic reads the policy's states, "
            "which have not seen the column. Set model.critic_kind=full, or leave privileged out."
        )
    if sections.trainer.steps == 0 and not algorithm.pretrains:
        raise ConfigError(
            f"trainer.steps=0 pretrains a critic and stops, but {choice.preset} as set here pretrains none. "
            "Raise trainer.steps, or set trainer.pretraining_steps with a preset that has a critic."
        )
    config = Config(choice, sections, algorithm)
    origins = {key: set_by.get(key, Origin()) for key, _ in flatten(config.as_dict())}
    recipe = next((layer.recipe for layer in reversed(layers) if layer.recipe is not None), None)
    notes = (*_correction(config), *_unused(config, origins))
    return dataclasses.replace(config, origins=origins, notes=notes, recipe=recipe)


def _check_score_range(credit: Gae, reward: Reward) -> None:
    """Raise ConfigError for a head with a range where scores, which may be any number, are the outcomes."""
    head = credit.head
    if reward.by == "score" and not isinstance(head, LinearHead) and (head.low is None or head.high is None):
        ends = "the least and the greatest outcome that the scores give"
        if credit.baseline == "group":  # the critic learns what the group's mean leaves
            ends = "minus and plus the distance between least and greatest outcome"
        raise ConfigError(
            f"algorithm.reward.by=score may give any number, and the head {head.kind} needs a range: set "
            f"algorithm.credit.head.low and high to {ends}, or take the linear head."
        )


def alpha_follows_length(choice: Choice, sections: Sections) -> bool:
    """Whether the chosen method has an α that is a size: one that has to follow the length of the responses."""
    return alpha_is_a_size(_method(choice.model_copy(update={"alpha": None}), sections))


def _method(choice: Choice, sections: Sections) -> Algorithm:
    """The method: the preset, less what is taken away, with the fields that were set, at the chosen sizes."""
    if choice.preset not in PRESETS:
        raise ConfigError(
            f"No preset is called {choice.preset!r}{suggestion(choice.preset, PRESETS)} "
            f"There are: {', '.join(PRESETS)}."
        )
    method = PRESETS[choice.preset]
    for technique in sorted(choice.without, key=lambda name: name not in REMEDIES):
        method, before = without(method, technique), method
        if method == before:
            raise ConfigError(
                f"The preset {choice.preset} does not use {technique}, so it cannot be taken away; leave it out."
            )
    if choice.fields:
        for key, _ in flatten(choice.fields):
            if key in NAMES:
                raise ConfigError(f"algorithm.{key} has one name: set {NAMES[key]}.")
        try:
            merged = merge(dataclasses.asdict(method), choice.fields)
            method = _Method.model_validate({"algorithm": merged}).algorithm
        except ValidationError as error:
            raise explain(error) from error
    if choice.k is not None:
        _check_only_rule(choice)
    return scaled(method, sizes(sections.trainer, choice))


def _check_only_rule(choice: Choice) -> None:
    """Raise ConfigError where the settings name a rule for λ beside algorithm.k, or take it away."""
    credit = choice.fields.get("credit")
    rule = credit.get("policy_lambda") if isinstance(credit, Mapping) else None
    if rule not in (None, {"kind": "share"}):
        raise ConfigError(
            f"algorithm.k={choice.k:g} makes lambda one by share, and algorithm.credit.policy_lambda is {rule} here. "
            "Set one of the two."
        )
    if removed := [name for name in choice.without if {**TECHNIQUES, **REMEDIES}.get(name) == "credit.policy_lambda"]:
        raise ConfigError(
            f"algorithm.k={choice.k:g} sets the lambda that --without {removed[0]} takes away. Leave out one of them."
        )


def corrected(method: Algorithm, choice: Choice, sections: Sections) -> Algorithm:
    """The method with a sampler correction, where the sampled log-probabilities need one and nobody chose.

    Methods whose trust region is measured from the policy that sampled correct by themselves.
    """
    differ = not sections.rollout.engine.exact or sections.trainer.max_staleness > 0
    needed = differ and isinstance(method.sampler, NoCorrection)
    if not needed or "sampler" in choice.fields or isinstance(method.clip, RatioMask | ProbabilityBound):
        return method
    return dataclasses.replace(method, sampler=TruncatedWeight())


_REFUSED = ("model.critic", "model.critic_lora")
"""Settings that are an error on the command line where the method has no use for them."""


def _correction(config: Config) -> tuple[str, ...]:
    """Notes on stale responses, and on the correction that they or the engine bring, or that was refused."""
    engine, sampler = config.sections.rollout.engine, config.algorithm.sampler
    notes = []
    if config.sections.trainer.max_staleness:
        exact = "; it repeats and resumes exactly all the same" if engine.exact else ""
        notes.append(
            "trainer.max_staleness=1: responses come from the weights before the last update, so training takes "
            f"another course than with 0{exact}"
        )
    elif engine.exact:
        return ()
    what, why = f"what {engine.kind} samples", f"{engine.kind} is not exact"
    if engine.exact:
        what, why = "what older weights sampled", "the responses are one update old"
    if isinstance(config.algorithm.clip, RatioMask | ProbabilityBound):
        return tuple(notes)
    if isinstance(sampler, NoCorrection):
        notes.append(f"algorithm.sampler=none: {what} is trained on as if it were the policy's own")
    elif "sampler" not in config.choice.fields:
        notes.append(
            f"{why}, so algorithm.sampler={sampler.kind} weighs the loss of each token by the trainer's probability "
            "over the sampler's; --set algorithm.sampler.kind=none leaves it out"
        )
    return tuple(notes)


def _unused(config: Config, origins: Mapping[str, Origin]) -> tuple[str, ...]:
    """Notes on settings that were chosen and that the run does not use (`vapo.session.unused`).

    A setting may be meant for several presets (one command, each preset in turn), so it is noted. Raises ConfigError
    for a critic that was given on the command line to a method without one. A recipe's sizes are for every preset.
    """
    chosen = dict(flatten(config.as_dict()))
    defaults = dict(flatten(Sections().model_dump(mode="json")))
    keys = [
        key
        for key, value in chosen.items()
        if origins[key].source not in (Source.DEFAULT, Source.RECIPE)
        and value  # null, 0 and false switch something off, which is off here anyway
        # a run's own file spells out every default
        and not (origins[key].source is Source.FILE and key in defaults and defaults[key] == value)
    ]
    notes = []
    for key, why in unused(keys, config.sections, config.algorithm):
        value, origin = chosen[key], origins[key]
        if origin.source is Source.OPTION and key in _REFUSED:
            raise ConfigError(f"{key}={value} has no effect: the method is {config.label}, and {why}. Leave it out.")
        notes.append(f"{key}={value} ({origin.place}) has no effect on {config.label}: {why}")
    return tuple(notes)
