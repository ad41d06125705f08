"""The cells of a study: one run for each combination of method, seed and base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vapo.algo.method import Gae
from vapo.algo.sizes import NAMES
from vapo.errors import ConfigError
from vapo.json_text import flatten
from vapo.session.config import Config, resolve
from vapo.session.layers import Layer, file_layer, merge, recipe_layer
from vapo.session.path_checks import check_policy, check_task_files
from vapo.session.unused import unused
from vapo.study.cell_identity import deciding_settings, settings_hash
from vapo.study.study import PRETRAINED, Method, Study
from vapo.types import stable_hash

PAUSE, LOCK = "pause", "study.lock"
"""Files in a study's folder: one that pauses the study, and one that its process locks."""
RESERVED = (PAUSE, LOCK, "bases", "cells", "logs", "runs", "tuning", "tuning.json")
"""What that folder holds beside comparisons. The shipped study `critics` has its own beside the shared critics."""
SIZES = frozenset(NAMES.values())
"""The sizes of a method, by their names in the settings."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid: its folder and its settings."""

    kind: Literal["run", "tuning", "critic"]
    folder: Path
    method: str
    base: str
    seed: int
    config: Config
    critic: Path | None = None
    """The folder of the run that trains this run's initial critic."""
    critic_hash: str | None = None
    """The `hash` of that run."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the result, beside seed and base; they contain no paths of this machine."""
        return deciding_settings(self.config, self.critic_hash)

    @property
    def hash(self) -> str:
        """A hash of the settings, seed and base: equal where another machine runs the same cell."""
        return settings_hash(self.settings, self.base, self.seed)

    @property
    def name(self) -> str:
        """The name of the cell's files in the study's folder."""
        return f"{self.kind}-{self.folder.name}"

    @property
    def started_file(self) -> Path:
        """Where the study writes the settings with which it starts the run."""
        return self.folder.parents[1] / "cells" / f"{self.name}.json"

    def card(self) -> dict[str, Any]:
        """The identity of the run for cell.json; the runner adds settings and outcome."""
        return {"kind": self.kind, "method": self.method, "base": self.base, "seed": self.seed}


def critic_cells(study: Study, out: Path) -> list[Cell]:
    """One cell for each base and each critic that a method starts from; a critic follows the one it starts from."""
    needed: list[str] = []

    def add(name: str) -> None:
        start = study.critics[name].start
        if start is not None:
            add(start)
        if name not in needed:
            needed.append(name)

    for method in [*study.methods.values(), *study.untabled.values()]:
        if (name := critic_of(study, method)) is not None:
            add(name)
    return [_critic_cell(study, out, name, base) for name in needed for base in study.bases]


def tuning_cells(study: Study, out: Path) -> dict[tuple[str, int], list[Cell]]:
    """By (method, index of the grid point): one run per tuning seed, on the first base, with little evaluation."""
    if study.tuning is None:
        return {}
    evaluation = {"every": 0, "samples_per_prompt": 1, "final_samples_per_prompt": None, "prompts": 8}
    return {
        (name, point): [
            _cell(
                study,
                out,
                name,
                study.bases[0],
                seed,
                kind="tuning",
                extra=[file_layer("study: tuning", settings), file_layer("study: tuning", {"evaluation": evaluation})],
                folder=out / "tuning" / f"{slug(name)}-{point}-seed{seed}",
            )
            for seed in study.tuning.seeds
        ]
        for name in study.tuning.methods
        for point, settings in enumerate(study.tuning.grid)
    }


def run_cells(study: Study, out: Path, tuned: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """The runs of the table. Seeds are in the outer loop, so an unfinished study has complete seeds.

    `tuned` maps methods to the settings that tuning chose; a method without tuning uses its preset's.
    Raises ConfigError if two cells have the same folder.
    """
    cells: list[Cell] = []
    for base in study.bases:
        for seed in study.seeds:
            for name, method in study.methods.items():
                if seed in study.seeds[: method.seeds]:
                    chosen = tuned.get(name, tuned.get(method.preset, {}))
                    cells.append(_cell(study, out, name, base, seed, extra=[file_layer("study: tuned", chosen)]))
    folders: dict[Path, Cell] = {}
    for cell in cells:
        other = folders.setdefault(cell.folder, cell)
        if other is not cell:
            raise ConfigError(
                f"Two cells of the study have the same folder {cell.folder}: {describe(other)}; {describe(cell)}. List "
                "each seed once, and give methods and bases names that differ in letters or digits."
            )
    return cells


def check_name(name: str) -> None:
    """Raise ConfigError if the study's folder has another use for a file or folder of this name."""
    if name in RESERVED:
        raise ConfigError(
            f"A study cannot be called {name!r}: its folder has another use for {name}. Rename the study's file."
        )


def check_study_paths(study: Study, out: Path) -> None:
    """Raise ConfigError, DataError or ModelError for a task, a file or a base model that is not there."""
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    checked: list[Any] = []
    for cell in run_cells(study, out, {}):
        sections = cell.config.sections
        if (named := (sections.task, sections.model.policy)) not in checked:
            checked.append(named)
            check_task_files(cell.config)
            if sections.model.policy not in made_here:
                check_policy(cell.config)


def check_settings(study: Study) -> None:
    """Raise ConfigError for a setting under `algorithm` without effect on its method: the row would repeat another."""
    for name, method in study.methods.items():
        config = resolve([*_settings(study), file_layer("study", _method_settings(method))])
        chosen = {"algorithm": method.settings.get("algorithm", {})}
        own = {key: value for key, value in flatten(chosen) if value}  # null and 0 switch something off
        for key, why in unused(own, config.sections, config.algorithm):
            raise ConfigError(
                f"The method {name!r} of the study sets {key}={own[key]}, which has no effect on {config.label}: "
                f"{why}. Leave it out, or take another preset."
            )


def critic_of(study: Study, method: Method) -> str | None:
    """The critic a method starts from; None without a critic, or if it neither pretrains nor names another critic."""
    config = resolve([*_settings(study), file_layer("study", _method_settings(method))])
    credit = config.algorithm.credit
    if not isinstance(credit, Gae) or method.critic is None:
        return None
    pretrains = credit.pretraining_steps > 0
    return method.critic if pretrains or method.critic != PRETRAINED else None


def base_name(base: int | str) -> str:
    """The name of a base model in tables."""
    if isinstance(base, int):
        return f"seed {base}"
    return "shipped" if base == "builtin" else Path(base).name


def base_folder(study: Study, out: Path, base: int | str) -> str:
    """The value of `model.policy` for a base. The name of a base that the study makes holds its task and options."""
    if not isinstance(base, int):
        return base
    task = resolve(_settings(study)).sections.task
    options = f"-{stable_hash(sorted(task.options.items())):016x}"[:9] if task.options else ""
    return str(out / "bases" / f"{slug(task.name)}{options}-seed{base}")


def describe(cell: Cell) -> str:
    """A label for messages: method, base and seed, and the folder of a trial, which has the place in the grid."""
    trial = f" (trial {cell.folder.name})" if cell.kind == "tuning" else ""
    return f"{cell.method}, base {cell.base}, seed {cell.seed}{trial}"


def config_differences(wanted: Config, found: Config) -> Iterator[str]:
    """`key: found → wanted` for every setting in which two configurations differ."""
    a, b = dict(flatten(found.as_dict())), dict(flatten(wanted.as_dict()))
    for key in sorted(a.keys() | b.keys()):
        if key in SIZES and b.get(key) is None:
            continue  # not set in the study: the run took the default for its model
        if a.get(key) != b.get(key):
            yield f"{key}: {a.get(key)} → {b.get(key)}"


def slug(name: str) -> str:
    """The name with only letters, digits, dots and hyphens, for folder names."""
    words = "".join(c if c.isalnum() or c in ".-" else " " for c in name).split()
    return "-".join(words)


def _critic_folder(out: Path, name: str, base: int | str) -> Path:
    return out / "critics" / f"{slug(name)}-{slug(base_name(base))}"


def _critic_cell(study: Study, out: Path, name: str, base: int | str) -> Cell:
    plan = study.critics[name]
    start = None if plan.start is None else _critic_folder(out, plan.start, base)
    layers = [
        *_common(study, out, base, study.seeds[0]),
        file_layer("study: critic", {"algorithm": {"preset": "vapo"}, "trainer": {"steps": 0}}),
        file_layer(f"study: critic {name}", plan.settings),
    ]
    if start is not None:
        layers.append(file_layer("study: critic", {"model": {"critic": str(start / "critic")}}))
    config, folder = resolve(layers), _critic_folder(out, name, base)
    start_hash = None if plan.start is None else _critic_cell(study, out, plan.start, base).hash
    return Cell("critic", folder, f"critic {name}", base_name(base), config.sections.seed, config, start, start_hash)


def _cell(
    study: Study,
    out: Path,
    name: str,
    base: int | str,
    seed: int,
    *,
    kind: Literal["run", "tuning"] = "run",
    extra: Sequence[Layer] = (),
    folder: Path | None = None,
) -> Cell:
    method = study.method(name)
    critic = critic_of(study, method)
    # the method's own settings define its row, so they override those that tuning chose
    layers = [*_common(study, out, base, seed), *extra, file_layer(f"study: {name}", _method_settings(method))]
    critic_folder = critic_hash = None
    if critic is not None:
        critic_folder, critic_hash = _critic_folder(out, critic, base), _critic_cell(study, out, critic, base).hash
        changes = {"model": {"critic": str(critic_folder / "critic")}, "trainer": {"pretraining_steps": 0}}
        layers.append(file_layer("study: critic", changes))
    default = out / "runs" / f"{slug(name)}-{slug(base_name(base))}-seed{seed}"
    return Cell(kind, folder or default, name, base_name(base), seed, resolve(layers), critic_folder, critic_hash)


def _settings(study: Study) -> list[Layer]:
    recipe = recipe_layer(study.recipe)
    # as a file layer, the recipe's sizes count as chosen by the study and hold for every base model
    return [file_layer(recipe.place, recipe.values), file_layer("study", study.settings)]


def _common(study: Study, out: Path, base: int | str, seed: int) -> list[Layer]:
    recipe, settings = _settings(study)
    no_rollouts = file_layer("study", {"trainer": {"save_rollouts_every": 0}})
    seed_and_base = file_layer("study", {"seed": seed, "model": {"policy": base_folder(study, out, base)}})
    return [recipe, no_rollouts, settings, seed_and_base]


def _method_settings(method: Method) -> dict[str, Any]:
    return merge({"algorithm": {"preset": method.preset, "without": method.without}}, method.settings)
