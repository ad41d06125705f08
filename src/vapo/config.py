"""One schema for a run: YAML in, frozen typed objects out, every value with its origin.

Precedence: defaults < recipe < file < command line. Unknown keys are errors with a "did you mean".
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vapo.algo.presets import PRESETS, Algorithm, Gae, scaled, without, without_all
from vapo.errors import ConfigError
from vapo.trainer.settings import CheckpointSettings, EvaluationSettings, GuardSettings, TrainerSettings, check_decoding

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "maze"


SIZED_BY = {
    "trainer.samples_per_step": "--set algorithm.sampling.prompts=N and algorithm.sampling.per_prompt=N",
    "trainer.group_size": "--set algorithm.sampling.per_prompt=N",
    "trainer.minibatch_size": "--set algorithm.optimization.minibatch=N",
    "trainer.actor_lr": "--set algorithm.optimization.actor_lr=X",
    "trainer.critic_lr": "--set algorithm.optimization.critic_lr=X",
    "trainer.warmup_steps": "--set algorithm.optimization.warmup_steps=N",
    "trainer.pretraining_steps": "--set algorithm.credit.pretraining_steps=N",
    "algorithm.alpha": "--set algorithm.credit.policy_lambda.alpha=X",
    "algorithm.preset": "start a new run",
    "algorithm.without": "start a new run",
}
"""Settings that size the method of a new run; a run that exists has its method spelled out."""


# --------------------------------------------------------------------------- the schema


@dataclass(frozen=True)
class ModelConfig:
    """Which networks."""

    policy: str = "builtin"
    """`builtin` (the base model shipped for the task), a folder, a hub id, or a .gguf file."""
    critic: str | None = None
    """Where the critic starts: a base model, a reward model, or a saved critic; null takes the policy's base."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of forward and backward passes; weights, values and losses stay float32."""
    policy_lora: int = 0
    """Rank of low-rank adapters on the policy; 0 trains all of its weights."""
    critic_lora: int = 0
    """Rank of low-rank adapters on the critic, beside its head; 0 trains all of its weights."""
    lora_alpha: float | None = None
    """Scale of the adapters' contribution, divided by the rank; null takes twice the rank."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, a third
    more time."""
    prompt_format: Literal["auto", "chat", "plain"] = "auto"
    """How problems become prompts: `chat` by the tokenizer's chat template, `plain` as `Problem: ... Solution:`,
    which suits base models; auto takes chat where there is a template. Prompts that are one text stay as they are."""
    trust_remote_code: bool = False
    """Run model code that comes with a hub repository. Leave off unless you have read it."""

    def __post_init__(self) -> None:
        for name in ("policy_lora", "critic_lora"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.{name} is a rank: 0 for none, or more; got {getattr(self, name)}.")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ConfigError(f"model.lora_alpha must be positive, got {self.lora_alpha}.")


class TaskConfig(BaseModel):
    """Which problems. `data` is a file or a hub data set, for tasks made from one; further keys are the task's own
    options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "maze"
    data: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options."""
        return {**({} if self.data is None else {"data": self.data}), **(self.model_extra or {})}


@dataclass(frozen=True)
class RolloutConfig:
    """How responses are sampled in training."""

    engine: Literal["torch", "generate"] = "torch"
    """Which engine samples: `torch`, or the slower `generate` for models that `torch` refuses (recurrent and hybrid
    ones, attention in chunks, caches of another form)."""
    temperature: float = 1.0
    """Sampling temperature > 0; log-probabilities are those of the tempered distribution."""
    top_p: float = 1.0
    """Must be 1 in training: a truncated distribution is not the policy whose gradient is taken."""
    max_response_tokens: int | None = None
    """Length limit of a response; null takes the task's."""
    slots: int = 128
    """Most responses decoded at the same time; changes memory and speed, not results."""

    def __post_init__(self) -> None:
        check_decoding("rollout", self.temperature, self.top_p)
        if self.temperature == 0:
            raise ConfigError("rollout.temperature must be above 0 in training: greedy samples carry no gradient.")
        if self.top_p != 1:
            raise ConfigError(
                f"rollout.top_p must be 1 in training, got {self.top_p}: probability ratios would be taken to a "
                "distribution that was not sampled from. Use evaluation.top_p for evaluation."
            )
        if self.max_response_tokens is not None and self.max_response_tokens < 1:
            raise ConfigError(f"rollout.max_response_tokens must be at least 1, got {self.max_response_tokens}.")
        if self.slots < 1:
            raise ConfigError(f"rollout.slots must be at least 1, got {self.slots}.")


@dataclass(frozen=True)
class TrainerConfig(TrainerSettings):
    """The loop's settings, and the numbers that put the method at this task's size.

    Each of the latter replaces the preset's number where the method uses it at all (null keeps the paper's),
    the same way for every preset.
    """

    samples_per_step: int | None = None
    """Responses per rollout step (the paper's 8,192)."""
    group_size: int | None = None
    """Responses per prompt, for methods that sample groups (the paper's 16)."""
    minibatch_size: int | None = None
    """Responses per gradient step (the paper's 512)."""
    actor_lr: float | None = None
    """Policy learning rate (the paper's 1e-6)."""
    critic_lr: float | None = None
    """Critic learning rate (the paper's 2e-6)."""
    warmup_steps: int | None = None
    """Rollout steps of linear learning-rate warm-up."""
    pretraining_steps: int | None = None
    """Value-pretraining steps, for methods that pretrain (the paper's 50)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("samples_per_step", "group_size", "minibatch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"trainer.{name} must be at least 1, got {value}.")
        for name in ("actor_lr", "critic_lr", "warmup_steps", "pretraining_steps"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ConfigError(f"trainer.{name} must not be negative, got {value}.")


@dataclass(frozen=True)
class ScaleConfig:
    """Where the run runs."""

    backend: Literal["local"] = "local"
    threads: int | None = None
    """CPU threads; null takes OMP_NUM_THREADS if it is set, else all cores, and one for models under 10 million
    parameters, where one is faster."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"scale.threads must be at least 1, got {self.threads}.")


class Sections(BaseModel):
    """All sections but `algorithm`, which is resolved from its preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = Field(default=0, ge=0)
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationSettings = EvaluationSettings()
    guards: GuardSettings = GuardSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    scale: ScaleConfig = ScaleConfig()


class _Choice(BaseModel):
    """Where a method starts from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: str = "vapo"
    without: list[str] = []
    alpha: float | None = None


class _Method(BaseModel):
    """The method's fields, checked; nested dataclasses inherit `forbid` from here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    algorithm: Algorithm


@dataclass(frozen=True)
class Config:
    """A resolved run configuration. `origins` maps each dotted key to where its value came from."""

    preset: str
    without: tuple[str, ...]
    algorithm: Algorithm
    sections: Sections
    origins: dict[str, str] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that `resolve` reads back to the same configuration."""
        sections = self.sections.model_dump(mode="json")
        algorithm = {
            "preset": self.preset,
            "without": list(self.without),
            **dataclasses.asdict(self.algorithm),
        }
        return {"seed": sections.pop("seed"), "algorithm": algorithm, **sections}

    def to_yaml(self) -> str:
        """`as_dict` as YAML, each line with its value's origin as a comment."""
        return "\n".join(_yaml_lines(self.as_dict(), self.origins)) + "\n"


@dataclass(frozen=True)
class Layer:
    """Settings from one place: `origin` names it (recipe, file, option)."""

    origin: str
    values: Mapping[str, Any]


# --------------------------------------------------------------------------- reading


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def recipe_layer(name: str) -> Layer:
    """A shipped recipe; raises ConfigError with a suggestion if there is none of that name."""
    known = recipes()
    if name not in known:
        raise ConfigError(
            f"No recipe is called {name!r}{_suggestion(name, known)} `vapo recipes` lists them; "
            "a file of your own needs the ending .yaml."
        )
    return Layer(f"recipe {name}", read_yaml(known[name]))


def source_layers(source: str | None) -> list[Layer]:
    """The layers of `vapo train SOURCE`: a recipe's name, a YAML file (which may name a `recipe:` to start
    from), or nothing for the default recipe."""
    if source is None:
        return [recipe_layer(DEFAULT_RECIPE)]
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        return [recipe_layer(source)]
    values = dict(read_yaml(path))
    base = values.pop("recipe", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: recipe: must be the name of a recipe, got {base!r}.")
    return [*([recipe_layer(base)] if base else []), Layer(f"file {path.name}", values)]


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; raises ConfigError naming file and line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{path} is not valid YAML: {where}{getattr(error, 'problem', error)}.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, found a {type(data).__name__}.")
    return data


def set_layer(assignment: str, origin: str = "--set") -> Layer:
    """`a.b=c` as a layer; the value is read as YAML."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, like --set trainer.steps=50; got {assignment!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value is not valid YAML: {text!r}.") from error
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return Layer(origin, value)


def resolve(layers: Sequence[Layer]) -> Config:
    """The configuration of the layers, later ones winning; raises ConfigError for anything wrong in it."""
    merged: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
        for key, _ in flatten(layer.values):
            set_by[key] = layer.origin
    algorithm_values = merged.pop("algorithm", None) or {}
    if not isinstance(algorithm_values, Mapping):
        raise ConfigError(f"algorithm: must be a mapping like {{preset: vapo}}, got {algorithm_values!r}.")
    algorithm_values = dict(algorithm_values)
    try:
        sections = Sections.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, {**Sections().model_dump(), "algorithm": {}}) from error
    preset, removed, algorithm = _resolve_algorithm(algorithm_values, sections.trainer)
    if sections.trainer.steps == 0 and not (isinstance(algorithm.credit, Gae) and algorithm.credit.pretraining_steps):
        raise ConfigError(
            f"trainer.steps=0 pretrains a critic and stops, but {preset} as set here pretrains none. "
            "Raise trainer.steps, or set trainer.pretraining_steps with a preset that has a critic."
        )
    config = Config(preset, removed, algorithm, sections)
    origins = {}
    for key, value in flatten(config.as_dict()):
        origins[key] = set_by.get(key) or _origin(key, value, preset, removed)
    return dataclasses.replace(config, origins=origins)


def _resolve_algorithm(values: dict[str, Any], trainer: TrainerConfig) -> tuple[str, tuple[str, ...], Algorithm]:
    chosen = {key: values.pop(key) for key in _Choice.model_fields if values.get(key) is not None}
    try:
        choice = _Choice.model_validate(chosen)
    except ValidationError as error:
        raise _explain(error, {}, "algorithm.") from error
    preset, removed, alpha = choice.preset, tuple(choice.without), choice.alpha
    if preset not in PRESETS:
        raise ConfigError(
            f"No preset is called {preset!r}{_suggestion(preset, PRESETS)} There are: {', '.join(PRESETS)}."
        )
    method = PRESETS[preset]
    for technique in removed:
        method, before = without(method, technique), method
        if method == before:
            raise ConfigError(
                f"The preset {preset} does not use {technique}, so it cannot be taken away; leave it out."
            )
    algorithm = scaled(
        method,
        samples=trainer.samples_per_step,
        group=trainer.group_size,
        alpha=alpha,
        pretraining_steps=trainer.pretraining_steps,
        minibatch=trainer.minibatch_size,
        actor_lr=trainer.actor_lr,
        critic_lr=trainer.critic_lr,
        warmup_steps=trainer.warmup_steps,
    )
    if values:
        whole = dataclasses.asdict(algorithm)
        try:
            algorithm = _Method.model_validate({"algorithm": merge(whole, values)}).algorithm
        except ValidationError as error:
            known = {"algorithm": {**whole, "preset": "", "without": [], "alpha": 0.0}}
            raise _explain(error, known) from error
    return preset, removed, algorithm


def _origin(key: str, value: Any, preset: str, removed: tuple[str, ...]) -> str:
    if not key.startswith("algorithm.") or key in {"algorithm.preset", "algorithm.without"}:
        return "default"
    path = key.removeprefix("algorithm.")
    if dict(flatten(dataclasses.asdict(PRESETS[preset]))).get(path) == value:
        return f"preset {preset}"
    if dict(flatten(dataclasses.asdict(without_all(PRESETS[preset], removed)))).get(path) == value:
        return f"preset {preset} without {', '.join(removed)}"
    return "scaled: see trainer and algorithm.alpha"


# --------------------------------------------------------------------------- helpers


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping. A mapping of another `kind` or `rule` replaces the old one."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_kind(old, value):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(tag in new and tag in old and new[tag] != old[tag] for tag in ("kind", "rule"))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf value) pairs; an empty mapping is a leaf."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _suggestion(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _explain(error: ValidationError, known: Mapping[str, Any], prefix: str = "") -> ConfigError:
    """The first problem of a validation error as one line: key, what is wrong, what would be right."""
    problems = error.errors()
    # in a union every member complains; those whose tag does not fit were not meant
    unmeant = [p["loc"][:-1] for p in problems if p["type"] == "literal_error" and p["loc"][-1] in ("kind", "rule")]
    meant = [p for p in problems if not any(p["loc"][: len(branch)] == branch for branch in unmeant)]
    problem = (meant or problems)[0]
    path = [str(part) for part in problem["loc"] if not str(part)[:1].isupper()]
    key = prefix + ".".join(path)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near: Any = known
        for part in path[:-1]:
            near = near.get(part, {}) if isinstance(near, Mapping) else {}
        names = list(near) if isinstance(near, Mapping) else []
        elsewhere = [k for k, _ in flatten(known) if len(path) < 3 and k.rpartition(".")[2] == path[-1]]
        if elsewhere:
            return ConfigError(f"Unknown setting {key}; did you mean {' or '.join(map(repr, elsewhere))}?")
        return ConfigError(f"Unknown setting {key}{_suggestion(path[-1], names)} Known here: {', '.join(names)}.")
    return ConfigError(f"{key}: {problem['msg']}, got {problem.get('input')!r}.")


def _yaml_lines(values: Mapping[str, Any], origins: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, origins, f"{prefix}{key}.")
        else:
            style = '"' if isinstance(value, str) and "\n" in value else None  # one line for a text of many, too
            text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**6)
            text = text.strip().removesuffix("...").strip()
            origin = origins.get(f"{prefix}{key}")
            yield f"{indent}{key}: {text}".ljust(48) + (f"  # {origin}" if origin else "")
