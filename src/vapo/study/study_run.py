"""Run a study from its file to its comparison, or list what that would run."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError
from vapo.study.cell_fit import check_folders
from vapo.study.cells import LOCK, Cell, base_folder, check_name, critic_cells, run_cells, tuning_cells
from vapo.study.job_count import default_jobs
from vapo.study.keeping import kept_runs, kept_tuning, read_kept_files
from vapo.study.runner import Report, Runner, StudyError
from vapo.study.study import Study, study_yaml
from vapo.study.study_course import Course, check_inputs, chosen_settings
from vapo.study.tuning_choice import cells_of, chosen_before, tuning_of


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
    parameters = check_study(study, out)
    threads = run_cells(study, out, {})[0].config.sections.scale.threads
    runner = Runner(out, jobs or default_jobs(threads, parameters), say, on_progress)
    with locked(out):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "study.yaml").write_text(study_yaml(study))
        course = Course(study, out, runner, files)
        cells = course.tune()
        course.train(cells)
        results = course.compare(cells, out / name, command)
    if problems := list(course.problems()):
        compared = f" {out / name} compares the finished runs." if results else ""
        raise StudyError("\n".join(problems) + compared)
    return results


def check_study(study: Study, out: Path) -> int:
    """Raise ConfigError, DataError or ModelError for mistakes that can be found before anything runs.

    Returns the parameters of the largest base model that is there; the study makes small ones.
    """
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    runs, (entries, _) = run_cells(study, out, chosen_before(study, out)), kept_tuning(trials, out, [])
    # `run_study` checks the other runs when tuning has chosen their settings
    known = [run for run in runs if tuning_of(study, run.method) in (None, *entries)]
    check_folders([*critics, *known, *(cell for cells in trials.values() for cell in cells)])
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    return check_inputs([cell for cell in [*critics, *runs] if cell.config.sections.model.policy not in made_here])


def listed_cells(study: Study, out: Path, keep: Sequence[Path]) -> tuple[list[Cell], dict[Path, str], Sequence[str]]:
    """All cells, as far as tuning is known; by folder the file that a cell is kept from; why other runs are not."""
    files, trials = read_kept_files(keep), tuning_cells(study, out)
    entries, other_trials = kept_tuning(trials, out, files)
    runs = run_cells(study, out, {**chosen_before(study, out), **chosen_settings(entries)})
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
