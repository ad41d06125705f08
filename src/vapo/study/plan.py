"""What a study compares: a YAML file read into methods, and methods crossed with seeds and base models into cells.

    recipe: maze                      # where every cell's settings start
    settings: {trainer: {steps: 30}}  # laid over the recipe, the same for every cell
    seeds: [0, 1, 2]
    bases: [builtin, 1]               # the shipped base model, and the one `vapo make-base --seed 1` makes
    methods: [ppo, grpo, vapo, vapo without clip-higher, vapo with dynamic-sampling]

`methods` may also be a mapping from any name to `{preset, without, settings, critic, seeds}`. The rules of a fair
comparison are in the structure: there is one `settings` for all, and a method's own `settings` show in the file.
`like: OTHER` takes over another study's entries; carried out in the same folder, the two share their runs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vapo.algo.presets import PRESETS, TECHNIQUES, Gae
from vapo.config import Config, Layer, merge, read_yaml, recipe_layer, resolve
from vapo.errors import ConfigError

STUDIES = Path(__file__).resolve().parent.parent / "studies"
DEFAULT_STUDY = "maze"
PRETRAINED = "pretrained"
"""The critic that value pretraining makes from the base model."""
DYNAMIC_SAMPLING = {"algorithm": {"sampling": {"refill_rounds": PRESETS["dapo"].sampling.refill_rounds}}}

BUDGETS: dict[str, str] = {
    "smoke": "one seed, one base model, 3 steps: does everything run?",
    "standard": "three seeds at most, one base model",
    "full": "all that the study names",
}
_SMOKE = {
    "trainer": {"steps": 3, "pretraining_steps": 2, "pretraining_passes": 1},
    "evaluation": {"every": 2, "prompts": 20, "samples_per_prompt": 1, "final_samples_per_prompt": 2},
}


class Method(BaseModel):
    """One row of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    preset: str
    without: list[str] = []
    settings: dict[str, Any] = {}
    """Laid over the study's settings, for this method only."""
    critic: str | None = PRETRAINED
    """Which of the study's critics takes the place of value pretraining, where the method pretrains."""
    tuned_as: str | None = None
    """Take the settings that tuning chose for this method; null is the method's own preset."""
    seeds: int | None = Field(default=None, ge=1)
    """Run only so many of the study's seeds; null runs all."""


class CriticPlan(BaseModel):
    """A critic made once for each base model, before the runs that start from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    settings: dict[str, Any] = {}
    start: str | None = None
    """Another critic of the study to start from; null starts from the base model."""


class Tuning(BaseModel):
    """The same few settings tried for each method, on seeds that the final runs do not use."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    methods: list[str]
    grid: list[dict[str, Any]]
    seeds: list[int] = [100]


class Study(BaseModel):
    """A study as its file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str = ""
    recipe: str = "maze"
    settings: dict[str, Any] = {}
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    bases: list[int | str] = Field(default=["builtin"], min_length=1)
    """`builtin`, the seed of a base model to make, or the folder of one."""
    methods: dict[str, Method] = Field(min_length=1)
    critics: dict[str, CriticPlan] = {PRETRAINED: CriticPlan()}
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Cell:
    """One run of the grid: where it lies, and the settings that make it. `kind` is run, tuning or critic."""

    kind: str
    folder: Path
    method: str
    base: str
    seed: int
    config: Config
    critic: Path | None = None
    """The folder of the run that made this cell's critic."""
    needs: tuple[Path, ...] = field(default=())

    def card(self) -> dict[str, Any]:
        """What cell.json says of the run, besides how it ended."""
        return {"kind": self.kind, "method": self.method, "base": self.base, "seed": self.seed}


def studies() -> dict[str, Path]:
    """Shipped studies by name."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def read_study(source: str | None, changes: Mapping[str, Any] | None = None) -> Study:
    """A shipped study by name, or a YAML file; `changes` replace whole entries. Raises ConfigError."""
    source = source or DEFAULT_STUDY
    path = study_file(source)
    values = {**_entries(path), **(changes or {})}
    values["methods"] = named_methods(values.get("methods") or {})
    if "like" in read_yaml(path) and values.get("tuning"):
        # of another study's tuning only what these methods need
        used = {entry["preset"] for entry in values["methods"].values()}
        kept = [name for name in values["tuning"]["methods"] if name in used and name in values["methods"]]
        values["tuning"] = {**values["tuning"], "methods": kept} if kept else None
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        known = "" if problem["type"] != "extra_forbidden" else f" Known here: {', '.join(Study.model_fields)}."
        raise ConfigError(f"{path}: {where}: {problem['msg']}, got {problem.get('input')!r}.{known}") from error
    _check_names(study, path)
    return study


def study_file(source: str) -> Path:
    """Where a study is: a YAML file, or a shipped study by its name. Raises ConfigError."""
    if source.endswith((".yaml", ".yml")):
        return Path(source)
    if source not in studies():
        raise ConfigError(
            f"No study is called {source!r}; there are: {', '.join(studies())}. A file of your own needs the "
            "ending .yaml."
        )
    return studies()[source]


def _entries(path: Path) -> dict[str, Any]:
    """A file's entries over those of the study it is `like`; settings are laid on settings, the rest replaces."""
    own = dict(read_yaml(path))
    other = own.pop("like", None)
    if other is None:
        return own
    base = _entries(study_file(str(other)))
    return {**base, **own, "settings": merge(base.get("settings") or {}, own.get("settings") or {})}


def named_methods(methods: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Methods by name; names alone are read by `method_called`, and so are entries without a preset."""
    if isinstance(methods, Mapping):
        return {
            name: dict(entry) if entry and "preset" in entry else merge(method_called(name), entry or {})
            for name, entry in methods.items()
        }
    return {name: method_called(name) for name in methods}


def method_called(name: str) -> dict[str, Any]:
    """The method that a name says: a preset, `PRESET without TECHNIQUE`, or `PRESET with dynamic-sampling`."""
    preset, _, rest = name.partition(" ")
    how, _, what = rest.partition(" ")
    if preset in PRESETS:
        if not rest:
            return {"preset": preset}
        if how == "without" and what in TECHNIQUES:
            return {"preset": preset, "without": [what]}
        if rest == "with dynamic-sampling":
            return {"preset": preset, "settings": DYNAMIC_SAMPLING}
    raise ConfigError(
        f"Cannot tell which method {name!r} is. Write a preset ({', '.join(PRESETS)}), `vapo without TECHNIQUE` "
        f"({', '.join(TECHNIQUES)}), `vapo with dynamic-sampling`, or a mapping with its preset and settings."
    )


def within(study: Study, budget: str) -> Study:
    """The study at a smaller budget; raises ConfigError for a name that is none."""
    if budget not in BUDGETS:
        raise ConfigError(f"No budget is called {budget!r}. There are: {', '.join(BUDGETS)}.")
    if budget == "full":
        return study
    smaller: dict[str, Any] = {"bases": study.bases[:1], "seeds": study.seeds[:3]}
    if budget == "smoke":
        smaller["seeds"] = study.seeds[:1]
        smaller["settings"] = merge(study.settings, _SMOKE)
        if study.tuning:
            smaller["tuning"] = study.tuning.model_copy(update={"seeds": study.tuning.seeds[:1]})
    return study.model_copy(update=smaller)


# --------------------------------------------------------------------------- cells


def critic_cells(study: Study, out: Path) -> list[Cell]:
    """The critics that some method starts from, for every base; a critic stands after the one it starts from."""
    wanted: list[str] = []

    def want(name: str) -> None:
        start = study.critics[name].start
        if start is not None:
            want(start)
        if name not in wanted:
            wanted.append(name)

    for method in study.methods.values():
        if (name := critic_of(study, method)) is not None:
            want(name)
    cells = []
    for base in study.bases:
        for name in wanted:
            plan = study.critics[name]
            start = None if plan.start is None else critic_folder(out, plan.start, base)
            layers = [
                *_common(study, out, base, study.seeds[0]),
                Layer("study: critic", {"algorithm": {"preset": "vapo"}, "trainer": {"steps": 0}}),
                Layer(f"study: critic {name}", plan.settings),
            ]
            if start is not None:
                layers.append(Layer("study: critic", {"model": {"critic": str(start / "critic")}}))
            cells.append(
                Cell(
                    kind="critic",
                    folder=critic_folder(out, name, base),
                    method=f"critic {name}",
                    base=base_name(base),
                    seed=study.seeds[0],
                    config=resolve(layers),
                    critic=start,
                )
            )
    return cells


def tuning_cells(study: Study, out: Path) -> dict[tuple[str, int], list[Cell]]:
    """By (method, number of the grid point): a run per tuning seed on the first base, without evaluations."""
    if study.tuning is None:
        return {}
    quiet = {"evaluation": {"every": 0, "samples_per_prompt": 1, "final_samples_per_prompt": None, "prompts": 8}}
    return {
        (name, point): [
            _cell(
                study,
                out,
                name,
                study.bases[0],
                seed,
                kind="tuning",
                extra=[Layer("study: tuning", settings), Layer("study: tuning", quiet)],
                folder=out / "tuning" / f"{_slug(name)}-{point}-seed{seed}",
            )
            for seed in study.tuning.seeds
        ]
        for name in study.tuning.methods
        for point, settings in enumerate(study.tuning.grid)
    }


def run_cells(study: Study, out: Path, tuned: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """The runs of the table, seed by seed, so that an unfinished study has whole columns.

    `tuned` maps methods to what tuning chose for them.
    """
    cells = []
    for base in study.bases:
        for seed in study.seeds:
            for name, method in study.methods.items():
                if seed not in study.seeds[: method.seeds]:
                    continue
                chosen = tuned.get(method.tuned_as or name, tuned.get(method.preset, {}))
                cells.append(_cell(study, out, name, base, seed, extra=[Layer("study: tuned", chosen)]))
    return cells


def critic_of(study: Study, method: Method) -> str | None:
    """The critic a method starts from: only where it has one at all, and pretrains or names another."""
    config = resolve([*_settings(study), Layer("study", _method_settings(method))])
    credit = config.algorithm.credit
    if not isinstance(credit, Gae) or method.critic is None:
        return None
    pretrains = credit.pretraining_steps > 0
    return method.critic if pretrains or method.critic != PRETRAINED else None


def base_name(base: int | str) -> str:
    """How tables call a base model."""
    if isinstance(base, int):
        return f"seed {base}"
    return "shipped" if base == "builtin" else Path(base).name


def base_folder(out: Path, base: int | str) -> str:
    """What `model.policy` says for a base."""
    return str(out / "bases" / f"seed{base}") if isinstance(base, int) else base


def critic_folder(out: Path, name: str, base: int | str) -> Path:
    """Where the run lies that makes a critic."""
    return out / "critics" / f"{_slug(name)}-{_slug(base_name(base))}"


def _cell(
    study: Study,
    out: Path,
    name: str,
    base: int | str,
    seed: int,
    *,
    kind: str = "run",
    extra: Sequence[Layer] = (),
    folder: Path | None = None,
) -> Cell:
    method = study.methods[name]
    critic = critic_of(study, method)
    # what tuning chose stands below the method's own settings, which are part of what the row is
    layers = [*_common(study, out, base, seed), *extra, Layer(f"study: {name}", _method_settings(method))]
    made = None
    if critic is not None:
        made = critic_folder(out, critic, base)
        layers.append(
            Layer("study: critic", {"model": {"critic": str(made / "critic")}, "trainer": {"pretraining_steps": 0}})
        )
    default = out / "runs" / f"{_slug(name)}-{_slug(base_name(base))}-seed{seed}"
    return Cell(
        kind=kind,
        folder=folder or default,
        method=name,
        base=base_name(base),
        seed=seed,
        config=resolve(layers),
        critic=made,
    )


def _settings(study: Study) -> list[Layer]:
    return [recipe_layer(study.recipe), Layer("study", study.settings)]


def _common(study: Study, out: Path, base: int | str, seed: int) -> list[Layer]:
    quiet = {"trainer": {"save_rollouts_every": 0}}
    where = {"seed": seed, "model": {"policy": base_folder(out, base)}}
    return [_settings(study)[0], Layer("study", quiet), _settings(study)[1], Layer("study", where)]


def _method_settings(method: Method) -> dict[str, Any]:
    return merge({"algorithm": {"preset": method.preset, "without": method.without}}, method.settings)


def _check_names(study: Study, path: Path) -> None:
    for name, method in study.methods.items():
        if method.critic is not None and method.critic not in study.critics:
            raise ConfigError(f"{path}: method {name!r} starts from the critic {method.critic!r}, which is not listed.")
    for name, critic in study.critics.items():
        seen = {name}
        while critic.start is not None:
            if critic.start not in study.critics or critic.start in seen:
                raise ConfigError(f"{path}: critic {name!r} starts from {critic.start!r}, which is not listed before.")
            seen.add(critic.start)
            critic = study.critics[critic.start]
    unknown = [name for name in (study.tuning.methods if study.tuning else []) if name not in study.methods]
    if unknown:
        raise ConfigError(f"{path}: tuning names {unknown[0]!r}, which is not among the methods.")


def _slug(name: str) -> str:
    words = "".join(c if c.isalnum() or c in ".-" else " " for c in name).split()
    return "-".join(words)


def frozen(study: Study) -> str:
    """The study as YAML, as it was carried out."""
    return yaml.safe_dump(json.loads(study.model_dump_json()), sort_keys=False, width=100)


def config_differences(wanted: Config, found: Config) -> Iterator[str]:
    """`key: found → wanted` for every setting in which two configurations differ."""
    from vapo.config import flatten

    a, b = dict(flatten(found.as_dict())), dict(flatten(wanted.as_dict()))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            yield f"{key}: {a.get(key)} → {b.get(key)}"


def with_seeds(study: Study, count: int | None) -> Study:
    """The study with so many seeds: its own first, then the numbers after them."""
    if count is None:
        return study
    seeds = study.seeds[:count]
    while len(seeds) < count:
        seeds = [*seeds, max(seeds) + 1]
    return study.model_copy(update={"seeds": seeds})


def only_methods(study: Study, names: Sequence[str]) -> Study:
    """The study with the named methods only; raises ConfigError for one that is neither listed nor readable."""
    if not names:
        return study
    chosen = {
        name: study.methods[name] if name in study.methods else Method.model_validate(method_called(name))
        for name in names
    }
    tuning = study.tuning
    if tuning is not None:
        kept = [name for name in tuning.methods if name in chosen]
        tuning = tuning.model_copy(update={"methods": kept}) if kept else None
    return study.model_copy(update={"methods": chosen, "tuning": tuning})


def replaced(cell: Cell, **changes: Any) -> Cell:
    """The cell with some fields changed."""
    return dataclasses.replace(cell, **changes)
