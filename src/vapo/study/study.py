"""Read a study's YAML file into methods, seeds and base models.

    recipe: maze                      # the initial settings of every cell
    settings: {trainer: {steps: 30}}  # replace the recipe's, equal for every cell
    seeds: [0, 1, 2]
    bases: [builtin, 1]               # the shipped base model, and the one `vapo make-base --seed 1` makes
    methods: [ppo, grpo, vapo, vapo without clip-higher, vapo with dynamic-sampling]

`methods` may also be a mapping from any name to `{preset, without, settings, critic, seeds}`. To keep the comparison
fair, all methods share one `settings`, and a method's own `settings` are visible in the file. `like: OTHER` copies
another study's entries; two studies that run in the same folder share their runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vapo.algo.presets import PRESETS, REMEDIES, TECHNIQUES
from vapo.errors import ConfigError, counted
from vapo.json_text import flatten
from vapo.session.layers import merge, nested, read_yaml, recipes
from vapo.type_words import expected, shown

STUDIES = Path(__file__).resolve().parent.parent / "studies"
DEFAULT_STUDY = "maze"
PRETRAINED = "pretrained"
"""The critic that value pretraining makes from the base model."""
DYNAMIC_SAMPLING = {"algorithm": {"sampling": {"refill_rounds": PRESETS["dapo"].sampling.refill_rounds}}}

BUDGETS: dict[str, str] = {
    "smoke": "one seed, one base model, 3 steps, no tuning: checks that everything runs",
    "standard": "at most three seeds, one base model",
    "full": "all seeds and base models of the study",
}
_SMOKE = {
    "trainer": {"steps": 3, "pretraining_steps": 2, "pretraining_passes": 1},
    "evaluation": {"every": 2, "prompts": 20, "samples_per_prompt": 1, "final_samples_per_prompt": 2},
}

Seed = Annotated[int, Field(ge=0)]


class Method(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: str
    without: list[str] = []
    settings: dict[str, Any] = {}
    """Settings of this method only; they replace the study's."""
    critic: str | None = PRETRAINED
    """The critic of the study that replaces value pretraining, if the method pretrains."""
    seeds: int | None = Field(default=None, ge=1)
    """The number of the study's seeds to run; null runs all."""


class CriticPlan(BaseModel):
    """A critic that is trained once for each base model, before the runs that start from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    settings: dict[str, Any] = {}
    start: str | None = None
    """Another critic of the study to start from; null starts from the base model."""


class Tuning(BaseModel):
    """Settings to try for each tuned method, on seeds that the final runs do not use."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    methods: list[str] = Field(min_length=1)
    grid: list[dict[str, Any]] = Field(min_length=1)
    seeds: list[Seed] = Field(default=[100], min_length=1)


class Study(BaseModel):
    """The content of a study's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str = ""
    recipe: str = "maze"
    settings: dict[str, Any] = {}
    seeds: list[Seed] = Field(default=[0, 1, 2], min_length=1)
    bases: list[Seed | str] = Field(default=["builtin"], min_length=1)
    """`builtin`, the seed of a base model to make, or a base model's folder."""
    methods: dict[str, Method] = Field(min_length=1)
    reference: str = "vapo"
    """The method that the others are compared with. Without a finished run of it: vapo, else the first row."""
    critics: dict[str, CriticPlan] = {PRETRAINED: CriticPlan()}
    tuning: Tuning | None = None
    untabled: dict[str, Method] = {}
    """Methods that are tuned but have no row in the table."""

    def method(self, name: str) -> Method:
        """The method with this name, among `methods` or `untabled`."""
        return self.methods[name] if name in self.methods else self.untabled[name]


ENTRIES: dict[str, tuple[type[BaseModel], str]] = {
    "methods": (Method, "a method"),
    "untabled": (Method, "a method"),
    "critics": (CriticPlan, "a critic"),
    "tuning": (Tuning, "tuning"),
}
"""What stands under an entry of a study, and its name in messages."""


def studies() -> dict[str, Path]:
    """Shipped studies by name."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def read_study(source: str | None) -> Study:
    """Read a shipped study by name, or a YAML file. Raises ConfigError with the file, the entry and the fix."""
    path = study_file(source or DEFAULT_STUDY)
    values = _entries(path, ())
    try:
        values["methods"] = _named_methods(values.get("methods"), path)
        study = Study.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_mistake(error)}") from error
    _check_own_seeds(study, path)
    if study.tuning is not None and (source_of_tuning := _tuning_file(path)) != path:
        study = _with_needed_tuning(study, read_study(str(source_of_tuning)))
    check_names(study, str(path))
    if "reference" in values and study.reference not in study.methods:
        raise ConfigError(f"{path}: reference: {study.reference!r} is not among the methods.")
    return study


def _mistake(error: ValidationError) -> str:
    """The first mistake in a study, with its place and what belongs there."""
    problem = error.errors()[0]
    section, *below = problem["loc"]
    # the place of an entry that may be of several types ends with the type that was tried
    place = problem["loc"][:2] if section == "bases" else problem["loc"]
    where = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        model, name = ENTRIES.get(str(section), (Study, "a study")) if below else (Study, "a study")
        return f"{where} is no entry of {name}. Known here: {', '.join(model.model_fields)}."
    same_place = [each for each in error.errors() if each["loc"][: len(place)] == place]
    return f"{where} takes {expected(same_place)}, got {shown(problem['input'])}."


def _check_own_seeds(study: Study, path: Path) -> None:
    """Raise ConfigError if a method in this file wants more seeds than the study has."""
    own = read_yaml(path).get("methods")
    for name in own if isinstance(own, Mapping) else ():
        if (seeds := study.methods[str(name)].seeds or 0) > len(study.seeds):
            raise ConfigError(
                f"{path}: methods.{name}.seeds={seeds} is more than the study's {counted(len(study.seeds), 'seed')}. "
                "Lower it, or list more seeds."
            )


def study_file(source: str) -> Path:
    """The path of a study: a YAML file, or a shipped study by its name. Raises ConfigError for an unknown name."""
    if source.endswith((".yaml", ".yml")):
        return Path(source)
    if source not in studies():
        raise ConfigError(
            f"No study is called {source!r}; there are: {', '.join(studies())}. To read a file of your own, give its "
            "path with the ending .yaml."
        )
    return studies()[source]


def method_from_name(name: str) -> dict[str, Any]:
    """The entry for a method's name: a preset, `PRESET without TECHNIQUE`, or `PRESET with dynamic-sampling`.

    Raises ConfigError for any other name.
    """
    preset, _, rest = name.partition(" ")
    how, _, what = rest.partition(" ")
    if preset in PRESETS:
        if not rest:
            return {"preset": preset}
        if how == "without" and what in {**TECHNIQUES, **REMEDIES}:
            return {"preset": preset, "without": [what]}
        if rest == "with dynamic-sampling":
            return {"preset": preset, "settings": DYNAMIC_SAMPLING}
    raise ConfigError(
        f"Unknown method {name!r}. Write a preset ({', '.join(PRESETS)}), `vapo without TECHNIQUE` "
        f"({', '.join([*TECHNIQUES, *REMEDIES])}), `vapo with dynamic-sampling`, or a mapping with its preset "
        "and settings."
    )


def within(study: Study, budget: str) -> Study:
    """The study reduced to a budget. Raises ConfigError for an unknown budget."""
    if budget not in BUDGETS:
        raise ConfigError(f"No budget is called {budget!r}. There are: {', '.join(BUDGETS)}.")
    if budget == "full":
        return study
    smaller: dict[str, Any] = {"bases": study.bases[:1], "seeds": study.seeds[:3]}
    smaller["about"] = f"{study.about} ({budget} budget)"
    if budget == "smoke":
        smaller["seeds"] = study.seeds[:1]
        smaller["settings"] = merge(study.settings, _SMOKE)
        # their own settings win over the study's
        for name in ("methods", "critics"):
            smaller[name] = {
                key: entry.model_copy(update={"settings": _lowered(entry.settings)})
                for key, entry in getattr(study, name).items()
            }
        smaller |= {"tuning": None, "untabled": {}}
    return study.model_copy(update=smaller)


def _lowered(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one method or critic with those above `_SMOKE` lowered to it."""
    most, lowered = dict(flatten(_SMOKE)), dict(settings)
    for key, value in flatten(settings):
        if key in most and isinstance(value, int) and value > most[key]:
            lowered = merge(lowered, nested(key.split("."), most[key]))
    return lowered


def with_seeds(study: Study, count: int | None) -> Study:
    """The study with `count` seeds for every method: its own first, then the following numbers."""
    if count is None:
        return study
    seeds = study.seeds[:count]
    while len(seeds) < count:
        seeds = [*seeds, max(seeds) + 1]
    methods = {name: method.model_copy(update={"seeds": None}) for name, method in study.methods.items()}
    study = study.model_copy(update={"seeds": seeds, "methods": methods})
    check_names(study, "--seeds")
    return study


def only_methods(study: Study, names: Sequence[str]) -> Study:
    """The study reduced to the named methods and the tuning that they need.

    Raises ConfigError for a name that is neither in the study nor known to `method_from_name`.
    """
    if not names:
        return study
    chosen = {
        name: study.methods[name] if name in study.methods else Method.model_validate(method_from_name(name))
        for name in names
    }
    study = _with_needed_tuning(study.model_copy(update={"methods": chosen}), study)
    check_names(study, "--method")
    return study


def _with_needed_tuning(study: Study, source: Study) -> Study:
    """The study with the part of its tuning that its rows need: their own, else that of their preset.

    `source` defines the tuned methods that have no row. A row that sets all that the grid varies needs none.
    """
    tuning = study.tuning
    if tuning is None:
        return study
    varied = {key for point in tuning.grid for key, _ in flatten(point)}
    needed = {
        name if name in tuning.methods else method.preset
        for name, method in study.methods.items()
        if not varied <= dict(flatten(method.settings)).keys()
    }
    kept = [name for name in tuning.methods if name in needed]
    untabled = {name: source.method(name) for name in kept if name not in study.methods}
    tuning = tuning.model_copy(update={"methods": kept}) if kept else None
    return study.model_copy(update={"tuning": tuning, "untabled": untabled})


def check_names(study: Study, where: str) -> None:
    """Raise ConfigError for a recipe, a critic or a tuned method that there is not, and for seeds that tuning uses."""
    if study.recipe not in recipes():
        raise ConfigError(
            f"{where}: recipe: a study starts from a shipped recipe, not from {study.recipe!r}. Name one of "
            f"{', '.join(recipes())}, and write what a file of your own changes under settings."
        )
    if study.tuning and (common := sorted(set(study.tuning.seeds) & set(study.seeds))):
        raise ConfigError(
            f"{where}: tuning tries its settings on the seeds of final runs ({', '.join(map(str, common))}), which "
            "makes their scores too high. List other seeds under tuning.seeds."
        )
    for name, method in {**study.methods, **study.untabled}.items():
        if method.critic is not None and method.critic not in study.critics:
            raise ConfigError(
                f"{where}: method {name!r} starts from the critic {method.critic!r}, which is not listed under "
                "critics. List it, or set the method's critic to null."
            )
    for name, critic in study.critics.items():
        seen = {name}
        while critic.start is not None:
            if critic.start not in study.critics or critic.start in seen:
                raise ConfigError(f"{where}: critic {name!r} starts from {critic.start!r}, which is not listed before.")
            seen.add(critic.start)
            critic = study.critics[critic.start]
    for name in study.tuning.methods if study.tuning else []:
        if name not in study.methods and name not in study.untabled:
            raise ConfigError(f"{where}: tuning names {name!r}, which is not among the methods.")


def study_yaml(study: Study) -> str:
    """The study as YAML."""
    return yaml.safe_dump(json.loads(study.model_dump_json()), sort_keys=False, width=100)


def _entries(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A file's entries combined with those of the study it is `like`: settings are merged, other entries replaced."""
    if path in above:
        raise ConfigError(f"{path}: `like` leads back to the file itself. Remove `like` from one of the files.")
    own = dict(read_yaml(path))
    settings = own.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path}: settings: must hold sections like {{trainer: {{steps: 30}}}}, got {settings!r}.")
    other = own.pop("like", None)
    if other is None:
        return own
    base = _entries(study_file(str(other)), (*above, path))
    return {**base, **own, "settings": merge(base.get("settings") or {}, settings)}


def _named_methods(methods: Any, path: Path) -> dict[str, Any]:
    """Methods by name; `method_from_name` completes a name alone and an entry without a preset."""
    if isinstance(methods, list) and all(isinstance(name, str) for name in methods):
        return {name: method_from_name(name) for name in methods}
    if isinstance(methods, Mapping) and all(entry is None or isinstance(entry, Mapping) for entry in methods.values()):
        return {
            str(name): dict(entry) if entry and "preset" in entry else merge(method_from_name(str(name)), entry or {})
            for name, entry in methods.items()
        }
    raise ConfigError(
        f"{path}: methods: must be a list of names, or a mapping from names to {{preset, without, settings, "
        f"critic, seeds}}; got {methods!r}."
    )


def _tuning_file(path: Path) -> Path:
    """The file that the study's tuning comes from: itself, or one that it is `like`."""
    own = read_yaml(path)
    return path if "tuning" in own or "like" not in own else _tuning_file(study_file(str(own["like"])))
