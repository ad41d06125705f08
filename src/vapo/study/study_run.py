"""Run a study from its file to its comparison: base models, critics, tuning, then the runs of the table."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, counted
from vapo.json_text import flatten
from vapo.session.inputs import close_task, read_inputs
from vapo.study.cell_cards import check_same, check_same_critic, ended, finished_methods, read_card
from vapo.study.cells import Cell, base_folder, base_name, critic_cells, describe, run_cells, tuning_cells
from vapo.study.comparison import compare_runs
from vapo.study.job_count import default_jobs
from vapo.study.keeping import Kept, kept_lines, kept_runs, kept_tuning, needed_critics, read_kept_files
from vapo.study.runner import PAUSE, Report, Runner, StudyError
from vapo.study.study import Study, study_yaml
from vapo.study.tuning_choice import cells_of, choose_settings, chosen_before, read_tuning, tuning_of

LOCK = "study.lock"
RESERVED = (PAUSE, LOCK, "bases", "cells", "critics", "logs", "runs", "tuning", "tuning.json")
"""What a study's folder holds beside its comparisons."""


def run_study(
    study: Study,
    out: Path,
    *,
    name: str = "comparison",
    jobs: int | None = None,
    say: Report = print,
    on_progress: Callable[[Runner], None] = lambda runner: None,
    command: str = "vapo ablate",
    keep: Sequence[Path] = (),
) -> dict[str, Any]:
    """Run the study in `out`, write the comparison into `out/name`, and return the content of its `results.json`.

    The page shows `command` and the date on which the study ended. Call this again to continue a study, or with
    another study of the same settings to share the runs. Runs and trials that a `results.json` in `keep` holds with
    the same settings are taken over.

    Raises ConfigError before anything starts if a folder holds a run with other settings or another process
    uses `out`. Raises StudyError after comparing the finished runs if cells failed; a diverged run is a result. If a
    critic diverged or failed, the runs that do not need it run all the same.
    """
    check_name(name)
    files = read_kept_files(keep)
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    parameters = check_study(study, out)
    threads = run_cells(study, out, {})[0].config.sections.scale.threads
    runner = Runner(out, jobs or default_jobs(threads, parameters), say, on_progress)
    with locked(out):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "study.yaml").write_text(study_yaml(study))
        entries, other_trials = kept_tuning(trials, out, files)
        for line in other_trials:
            say(f"not kept: {line}")
        for method, entry in entries.items():
            if "kept_from" in entry:
                say(f"tuning of {method} kept from {entry['kept_from']}")
        untuned = [method for method in dict.fromkeys(name for name, _ in trials) if method not in entries]
        tried = [cell for method in untuned for cell in cells_of(method, trials) if not ended(cell)]
        planned = run_cells(study, out, {**chosen_before(study, out), **_chosen(entries)})
        kept = kept_runs(planned, files)
        notes = [] if untuned else list(kept_lines(kept, planned))
        for line in notes:
            say(line)
        pending = [*tried, *(cell for cell in planned if not kept.done(cell))]
        needed = needed_critics(pending, critics)
        bases = missing_bases(study, out, pending)
        runner.learn([*critics, *(cell for cells in trials.values() for cell in cells), *planned])
        runner.plan([*needed, *pending], [Path(base_folder(study, out, seed)) for seed in bases])
        runner.make_bases(study, bases)
        _check_inputs([*needed, *pending])
        broken = _train_critics(runner, needed, kept)
        if failed := runner.run([cell for cell in tried if cell.critic not in broken]):
            raise StudyError(
                f"{counted(len(failed), 'trial')} of tuning failed (first: {describe(failed[0])}), and tuning needs "
                f"all trials. Read {runner.logs}, then run the same command again."
            )
        waiting = {method for method in untuned if not all(ended(cell) for cell in cells_of(method, trials))}
        tuned = choose_settings(_without_tuning_of(study, waiting), trials, out, entries)
        for method, chosen in tuned.items():
            say(f"settings that tuning chose for {method}: {_flat(chosen)}")
        cells = [cell for cell in run_cells(study, out, tuned) if tuning_of(study, cell.method) not in waiting]
        kept = kept_runs(cells, files)
        if untuned:  # only now the settings of all runs are known
            notes = list(kept_lines(kept, cells))
            for line in notes:
                say(line)
        _check_same([cell for cell in cells if cell.folder not in kept.runs])
        pending = [cell for cell in cells if not kept.done(cell) and cell.critic not in broken]
        needed = [critic for critic in needed_critics(pending, critics) if critic.folder not in broken]
        bases = missing_bases(study, out, pending)  # of runs that a file has only with the settings before tuning
        runner.plan([*needed, *pending], [Path(base_folder(study, out, seed)) for seed in bases])
        runner.make_bases(study, bases)
        broken |= _train_critics(runner, needed, kept)
        failed = runner.run([cell for cell in pending if cell.critic not in broken])
        ran = [cell.folder for cell in cells if cell.folder not in kept.runs and read_card(cell.folder)]
        finished = finished_methods(ran) | {r.method for r in kept.runs.values() if r.outcome == "finished"}
        results = {}
        if finished or not (failed or broken):
            results = compare_runs(
                ran,
                out / name,
                reference=reference_among(finished, study.reference),
                heading=study.about,
                notes=[f"{command}, ended {date.today()}", *notes],
                kept=list(kept.runs.values()),
                tuning={
                    method: entry
                    for method, entry in read_tuning(out).items()
                    if method in study.methods or method in study.untabled
                },
            )
    if failed or broken:
        compared = f" {out / name} compares the finished runs." if results else ""
        raise StudyError(
            "\n".join(_problems(failed, [cell for cell in critics if cell.folder in broken], runner.logs)) + compared
        )
    return results


def check_name(name: str) -> None:
    """Raise ConfigError if the study's folder has another use for a file or folder of this name."""
    if name in RESERVED:
        raise ConfigError(
            f"A study cannot be called {name!r}: its folder has another use for {name}. Rename the study's file."
        )


def reference_among(methods: Collection[str], wanted: str) -> str | None:
    """`wanted` if it has a finished run, else None: the comparison takes one that has."""
    return wanted if wanted in methods else None


def check_study(study: Study, out: Path) -> int:
    """Raise ConfigError, DataError or ModelError for mistakes that can be found before anything runs.

    Returns the parameters of the largest base model that is there; the study makes small ones.
    """
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    runs, (entries, _) = run_cells(study, out, chosen_before(study, out)), kept_tuning(trials, out, [])
    # `run_study` checks the other runs when tuning has chosen their settings
    known = [run for run in runs if tuning_of(study, run.method) in (None, *entries)]
    _check_same([*critics, *known, *(cell for cells in trials.values() for cell in cells)])
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    return _check_inputs([cell for cell in [*critics, *runs] if cell.config.sections.model.policy not in made_here])


def listed_cells(study: Study, out: Path, keep: Sequence[Path]) -> tuple[list[Cell], dict[Path, str], Sequence[str]]:
    """All cells, as far as tuning is known; by folder the file that a cell is kept from; why other runs are not."""
    files, trials = read_kept_files(keep), tuning_cells(study, out)
    entries, other_trials = kept_tuning(trials, out, files)
    runs = run_cells(study, out, {**chosen_before(study, out), **_chosen(entries)})
    kept = kept_runs(runs, files)
    sources = {folder: str(run.kept_from) for folder, run in kept.runs.items()}
    for method, entry in entries.items():
        if source := entry.get("kept_from"):
            sources |= {cell.folder: source for cell in cells_of(method, trials)}
    return (
        [*critic_cells(study, out), *(c for cells in trials.values() for c in cells), *runs],
        sources,
        [*other_trials, *kept.refused],
    )


def missing_bases(study: Study, out: Path, cells: Sequence[Cell]) -> list[int]:
    """The seeds of the base models that these cells start from and that are not made yet."""
    used = {cell.base for cell in cells}
    seeds = [base for base in study.bases if isinstance(base, int) and base_name(base) in used]
    return [seed for seed in seeds if not Path(base_folder(study, out, seed), "config.json").is_file()]


def in_use(out: Path) -> bool:
    """Whether a study runs in the folder."""
    try:
        with locked(out):
            return False
    except ConfigError:
        return True


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder for one study. Raises ConfigError if another process holds the lock."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the runs of a study need a folder. Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"Cannot write into {out}: {error.strerror}. Choose another --out.") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another `vapo ablate` uses {out}. Wait until it ends, or choose another --out."
            ) from error
        yield


def _check_same(cells: Sequence[Cell]) -> None:
    for cell in cells:
        check_same(cell)
    check_same_critic(cells)


def _check_inputs(cells: Sequence[Cell]) -> int:
    """Check task, prompts and model of the cells without an initial critic; the other cells use the same.

    Returns the most parameters of a policy.
    """
    seen, most = [], 0
    for cell in cells:
        sections = cell.config.sections
        place = (sections.task, sections.model, sections.rollout)
        if cell.critic is None and place not in seen:
            seen.append(place)
            inputs = read_inputs(cell.config)
            close_task(inputs.task)
            most = max(most, inputs.parameters)
    return most


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


def _problems(failed: Sequence[Cell], broken: Sequence[Cell], logs: Path) -> Iterator[str]:
    """What keeps a study from its end, each with the fix."""
    for critic in broken:
        if read_card(critic.folder).get("outcome") == "diverged":
            yield (
                f"{describe(critic)} diverged, and no run that needs it was started. Lower its rate under critics in "
                f"the study, and delete {critic.folder} to train it again."
            )
        else:
            yield (
                f"{describe(critic)} did not finish, and no run that needs it was started. Read {logs}, then run the "
                "same command again."
            )
    if failed:
        yield (
            f"{counted(len(failed), 'cell')} failed (first: {describe(failed[0])}). Read {logs}, then run the same "
            "command again."
        )


def _without_tuning_of(study: Study, methods: Collection[str]) -> Study:
    if study.tuning is None or not methods:
        return study
    left = [method for method in study.tuning.methods if method not in methods]
    return study.model_copy(update={"tuning": study.tuning.model_copy(update={"methods": left})})


def _chosen(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {method: entry["chosen"] for method, entry in entries.items()}


def _depth(cell: Cell, critics: Sequence[Cell]) -> int:
    start = next((c for c in critics if c.folder == cell.critic), None)
    return 0 if start is None else 1 + _depth(start, critics)


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
