"""The course of a study: critics and trials of tuning first, then the runs of the table, then their comparison."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from vapo.errors import counted
from vapo.json_text import flatten
from vapo.session.inputs import close_task, read_inputs
from vapo.study.cell_cards import ended, finished_methods, read_card
from vapo.study.cell_fit import check_folders
from vapo.study.cells import Cell, base_folder, base_name, critic_cells, describe, run_cells, tuning_cells
from vapo.study.comparison import compare_runs
from vapo.study.keeping import Kept, KeptFile, kept_lines, kept_runs, kept_tuning, needed_critics
from vapo.study.runner import Runner, StudyError
from vapo.study.study import Study
from vapo.study.tuning_choice import cells_of, choose_settings, chosen_before, read_tuning, tuning_of


@dataclass
class Course:
    """One pass over a study's cells. Runs and trials that `files` hold with the same settings are taken over."""

    study: Study
    out: Path
    runner: Runner
    files: Sequence[KeptFile]
    kept: Kept = field(default_factory=lambda: Kept({}))
    """The runs that the files hold of the study's cells, once `tune` has read them."""
    notes: Sequence[str] = ()
    """What was taken over, in words."""
    failed: list[Cell] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)
    """The folders of critics that did not finish; what needs one does not run."""
    _checked: list[Any] = field(default_factory=list)
    """The inputs that were checked: tuning does not change them."""

    @cached_property
    def critics(self) -> list[Cell]:
        """The shared critics."""
        return critic_cells(self.study, self.out)

    @cached_property
    def trials(self) -> dict[tuple[str, int], list[Cell]]:
        """The trials of tuning by method and grid point."""
        return tuning_cells(self.study, self.out)

    def tune(self) -> list[Cell]:
        """Run the trials that tuning lacks; the runs of the study with the settings that it chose.

        Bases and critics that trials or runs need are made first. Runs of methods whose trials need a broken critic are
        left out. Raises StudyError where a trial failed.
        """
        study, out, say = self.study, self.out, self.runner.say
        entries, other_trials = kept_tuning(self.trials, out, self.files)
        for line in other_trials:
            say(f"not kept: {line}")
        for method, entry in entries.items():
            if "kept_from" in entry:
                say(f"tuning of {method} kept from {entry['kept_from']}")
        untuned = [method for method in dict.fromkeys(name for name, _ in self.trials) if method not in entries]
        tried = [cell for method in untuned for cell in cells_of(method, self.trials) if not ended(cell)]
        planned = run_cells(study, out, {**chosen_before(study, out), **chosen_settings(entries)})
        self._keep(planned, tell=not untuned)
        self.runner.learn([*self.critics, *(cell for cells in self.trials.values() for cell in cells), *planned])
        self._prepare([*tried, *(cell for cell in planned if not self.kept.done(cell))])
        if failed := self.runner.run(self._unbroken(tried)):
            trials = (
                f"{counted(len(failed), 'trial')} of tuning failed (first: {describe(failed[0])}), and tuning needs "
                f"all trials. Read {self.runner.logs}, then run the same command again."
            )
            raise StudyError("\n".join([*self.problems(), trials]))
        waiting = {method for method in untuned if not all(ended(cell) for cell in cells_of(method, self.trials))}
        tuned = choose_settings(_without_tuning_of(study, waiting), self.trials, out, entries)
        for method, settings in tuned.items():
            say(f"settings that tuning chose for {method}: {_flat(settings)}")
        cells = [cell for cell in run_cells(study, out, tuned) if tuning_of(study, cell.method) not in waiting]
        self._keep(cells, tell=bool(untuned))  # only now the settings of all runs are known
        return cells

    def train(self, cells: Sequence[Cell]) -> None:
        """Run the cells of the table that are not kept and have not ended."""
        check_folders([cell for cell in cells if cell.folder not in self.kept.runs])
        pending = self._unbroken([cell for cell in cells if not self.kept.done(cell)])
        self._prepare(pending)
        self.failed = self.runner.run(self._unbroken(pending))

    def compare(self, cells: Sequence[Cell], folder: Path, command: str) -> dict[str, Any]:
        """Write the comparison of the cells into the folder; empty where nothing has finished because cells failed."""
        ran = [cell.folder for cell in cells if cell.folder not in self.kept.runs and read_card(cell.folder)]
        finished = finished_methods(ran) | {r.method for r in self.kept.runs.values() if r.outcome == "finished"}
        if not finished and (self.failed or self.broken):
            return {}
        return compare_runs(
            ran,
            folder,
            reference=reference_among(finished, self.study.reference),
            heading=self.study.about,
            notes=[f"{command}, ended {date.today()}", *self.notes],
            kept=list(self.kept.runs.values()),
            tuning={
                method: entry
                for method, entry in read_tuning(self.out).items()
                if method in {cell.method for cell in cells} | self.study.untabled.keys()
            },
        )

    def problems(self) -> Iterator[str]:
        """What kept the study from its end, each with the fix."""
        for critic in (cell for cell in self.critics if cell.folder in self.broken):
            if read_card(critic.folder).get("outcome") == "diverged":
                yield (
                    f"{describe(critic)} diverged, and no run that needs it was started. Lower its rate under critics "
                    f"in the study, and delete {critic.folder} to train it again."
                )
            else:
                yield (
                    f"{describe(critic)} did not finish, and no run that needs it was started. Read "
                    f"{self.runner.logs}, then run the same command again."
                )
        if self.failed:
            yield (
                f"{counted(len(self.failed), 'cell')} failed (first: {describe(self.failed[0])}). Read "
                f"{self.runner.logs}, then run the same command again."
            )

    def _keep(self, cells: Sequence[Cell], *, tell: bool) -> None:
        """Take over what the files hold of these cells."""
        self.kept = kept_runs(cells, self.files)
        if tell:
            self.notes = list(kept_lines(self.kept, cells))
            for line in self.notes:
                self.runner.say(line)

    def _prepare(self, cells: Sequence[Cell]) -> None:
        """Make the bases and train the critics that these cells need."""
        needed = [critic for critic in needed_critics(cells, self.critics) if critic.folder not in self.broken]
        bases = missing_bases(self.study, self.out, cells)  # a run kept with the settings before tuning needs none
        self.runner.plan([*needed, *cells], [Path(base_folder(self.study, self.out, seed)) for seed in bases])
        self.runner.make_bases(self.study, bases)
        check_inputs([*needed, *cells], self._checked)
        self.broken |= _train_critics(self.runner, needed, self.kept)

    def _unbroken(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.critic not in self.broken]


def reference_among(methods: Collection[str], wanted: str) -> str | None:
    """`wanted` if it has a finished run, else None: the comparison takes one that has."""
    return wanted if wanted in methods else None


def missing_bases(study: Study, out: Path, cells: Sequence[Cell]) -> list[int]:
    """The seeds of the base models that these cells start from and that are not made yet."""
    used = {cell.base for cell in cells}
    seeds = [base for base in study.bases if isinstance(base, int) and base_name(base) in used]
    return [seed for seed in seeds if not Path(base_folder(study, out, seed), "config.json").is_file()]


def check_inputs(cells: Sequence[Cell], seen: list[Any] | None = None) -> int:
    """Check task, prompts and model of the cells without an initial critic; the other cells use the same.

    Inputs in `seen` are left out, and those that are checked join it. Returns the most parameters of a checked policy.
    Raises ConfigError, DataError or ModelError for what no run could begin with.
    """
    seen, most = [] if seen is None else seen, 0
    for cell in cells:
        sections = cell.config.sections
        place = (sections.task, sections.model, sections.rollout)
        if cell.critic is None and place not in seen:
            seen.append(place)
            inputs = read_inputs(cell.config)
            close_task(inputs.task)
            most = max(most, inputs.parameters)
    return most


def chosen_settings(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings that tuning chose, by method."""
    return {method: entry["chosen"] for method, entry in entries.items()}


def _train_critics(runner: Runner, critics: Sequence[Cell], kept: Kept) -> set[Path]:
    """Train the critics that have not ended, those that others start from first; the folders of the unfinished ones."""
    for critic in critics:
        identity = (critic.method, critic.base)
        users = [run for run in kept.runs.values() if (run.pretraining.critic, run.base) == identity]
        if users and not ended(critic):
            runner.say(
                f"{critic.method} on base {critic.base} is trained again, because new runs start from it: seed and "
                f"settings are those of the {counted(len(users), 'run')} kept, so it is the same critic, up to the "
                "rounding of another processor"
            )
    broken: set[Path] = set()
    for depth in sorted({_depth(cell, critics) for cell in critics}):  # a critic may start from another
        level = [cell for cell in critics if _depth(cell, critics) == depth]
        runner.run([cell for cell in level if cell.critic not in broken])
        broken |= {cell.folder for cell in level if read_card(cell.folder).get("outcome") != "finished"}
    return broken


def _without_tuning_of(study: Study, methods: Collection[str]) -> Study:
    if study.tuning is None or not methods:
        return study
    left = [method for method in study.tuning.methods if method not in methods]
    return study.model_copy(update={"tuning": study.tuning.model_copy(update={"methods": left})})


def _depth(cell: Cell, critics: Sequence[Cell]) -> int:
    start = next((c for c in critics if c.folder == cell.critic), None)
    return 0 if start is None else 1 + _depth(start, critics)


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
