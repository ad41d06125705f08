"""Run a study from its file to its comparison: base models, critics, tuning, then the runs of the table."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from vapo.errors import ConfigError, counted
from vapo.json_text import flatten
from vapo.session.inputs import close_task, read_inputs
from vapo.study.cell_cards import check_same, ended, finished_methods, read_card
from vapo.study.cells import Cell, base_folder, critic_cells, describe, run_cells, tuning_cells
from vapo.study.comparison import compare_runs
from vapo.study.runner import Report, Runner, StudyError
from vapo.study.study import Study, study_yaml
from vapo.study.tuning_choice import choose_settings, chosen_before


def run_study(
    study: Study,
    out: Path,
    *,
    name: str = "comparison",
    jobs: int | None = None,
    say: Report = print,
    on_progress: Callable[[Runner], None] = lambda runner: None,
    command: str = "vapo ablate",
) -> dict[str, Any]:
    """Run the study in `out`, write the comparison into `out/name`, and return the content of its `results.json`.

    The page shows `command` and the date on which the study ended. Call this again to continue a study, or with
    another study of the same settings to share the runs.

    Raises ConfigError before anything starts if a folder holds a run with other settings or another process
    uses `out`. Raises StudyError after comparing the finished runs if cells failed; a diverged run is a result.
    """
    runner = Runner(out, jobs or len(os.sched_getaffinity(0)), say, on_progress)
    critics, trials = critic_cells(study, out), tuning_cells(study, out)
    tried = [cell for cells in trials.values() for cell in cells]
    planned = run_cells(study, out, chosen_before(out))
    check_study(study, out)
    with locked(out):
        (out / name).mkdir(parents=True, exist_ok=True)
        (out / name / "study.yaml").write_text(study_yaml(study))
        runner.total = sum(not ended(cell) for cell in [*critics, *tried, *planned])
        runner.make_bases(study)
        _check_inputs([*critics, *planned])
        for depth in sorted({_depth(cell, critics) for cell in critics}):  # a critic may start from another
            level = [cell for cell in critics if _depth(cell, critics) == depth]
            runner.run(level)
            for cell in level:
                if read_card(cell.folder).get("outcome") != "finished":
                    raise StudyError(f"{describe(cell)} did not finish, and other runs need it; see {runner.logs}.")
        if failed := runner.run(tried):
            raise StudyError(
                f"{counted(len(failed), 'trial')} of tuning failed (first: {describe(failed[0])}), and tuning needs "
                f"all trials. Read {runner.logs}, then run the same command again."
            )
        tuned = choose_settings(study, trials, out)
        for method in study.tuning.methods if study.tuning else []:
            say(f"settings that tuning chose for {method}: {_flat(tuned.get(method, {}))}")
        cells = run_cells(study, out, tuned)
        for cell in cells:
            check_same(cell)
        failed = runner.run(cells)
        started = [cell.folder for cell in cells if read_card(cell.folder)]
        note = f"{command}, ended {date.today()}"
        if not failed or finished_methods(started):
            reference = reference_among(finished_methods(started), study.reference)
            results = compare_runs(started, out / name, reference=reference, heading=study.about, notes=[note])
        else:
            results = {}
    if failed:
        raise StudyError(
            f"{counted(len(failed), 'cell')} failed (first: {describe(failed[0])}); {out / name} compares the finished "
            f"ones. Read {runner.logs}, then run the same command again."
        )
    return results


def reference_among(methods: Collection[str], wanted: str) -> str:
    """`wanted` if it has a finished run, else "vapo"; a comparison replaces a missing "vapo" by its first row."""
    return wanted if wanted in methods else "vapo"


def check_study(study: Study, out: Path) -> None:
    """Raise ConfigError, DataError or ModelError for mistakes that can be found before anything runs."""
    cells = [*critic_cells(study, out), *run_cells(study, out, chosen_before(out))]
    for cell in [*cells, *(cell for trials in tuning_cells(study, out).values() for cell in trials)]:
        check_same(cell)
    made_here = {base_folder(study, out, base) for base in study.bases if isinstance(base, int)}
    _check_inputs([cell for cell in cells if cell.config.sections.model.policy not in made_here])


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder for one study. Raises ConfigError if another process holds the lock."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; the runs of a study need a folder. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"Another `vapo ablate` uses {out}. Wait until it ends, or choose another --out."
            ) from error
        yield


def _check_inputs(cells: Sequence[Cell]) -> None:
    """Check task, prompts and model of the cells without an initial critic; the other cells use the same."""
    seen = []
    for cell in cells:
        sections = cell.config.sections
        place = (sections.task, sections.model, sections.rollout)
        if cell.critic is None and place not in seen:
            seen.append(place)
            close_task(read_inputs(cell.config).task)


def _depth(cell: Cell, critics: Sequence[Cell]) -> int:
    start = next((c for c in critics if c.folder == cell.critic), None)
    return 0 if start is None else 1 + _depth(start, critics)


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in flatten(settings)) or "the study's settings"
