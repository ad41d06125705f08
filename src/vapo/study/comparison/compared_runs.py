"""Read the runs of a comparison; raise errors for runs whose scores cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vapo.errors import DataError, command, counted
from vapo.json_text import flatten
from vapo.reports.runfiles import read_run
from vapo.study.comparison.compared_run import ComparedRun, with_verdicts
from vapo.study.comparison.methods import distinct_labels, method_settings, table_order
from vapo.study.comparison.run_reading import base_names, effective_settings, is_unbegun, run_of, unbegun_run


def read_compared_runs(run_dirs: Sequence[str | Path], kept: Sequence[ComparedRun] = ()) -> list[ComparedRun]:
    """Read the runs and sort them by method, base and seed, so that the order of `run_dirs` has no effect.

    `kept` are runs that were read elsewhere (`kept_runs`); they are sorted in and checked like the others. All are as
    `with_verdicts` leaves them.

    A cell of a study that failed before its run began has a `cell.json` alone, and counts as failed.

    Raises DataError if a folder is not a run, if an older version did not record what a paired comparison needs, if
    runs have different tasks, held-out sets or k, if a method has the same base and seed twice, or if no run finished.
    """
    unbegun = [path for path in map(Path, run_dirs) if is_unbegun(path)]
    files = [read_run(path) for path in map(Path, run_dirs) if path not in unbegun]
    bases = base_names(files)
    runs = [run_of(found, bases) for found in files]
    labels = distinct_labels(
        [c.method for c in runs], [method_settings(dict(flatten(effective_settings(f)))) for f in files]
    )
    runs = [*(replace(run, method=label) for run, label in zip(runs, labels, strict=True)), *kept]
    _check_one_task(runs)  # the card of a cell that never began has no path of a task's file
    runs = [with_verdicts(run) for run in (*runs, *map(unbegun_run, unbegun))]
    runs.sort(key=lambda run: (table_order(run.method), run.base, run.seed))
    _check_no_repetition(runs)
    finished = [run for run in runs if run.outcome == "finished"]
    if not finished:
        raise DataError(
            f"None of {counted(len(runs), 'run')} has finished, so there is no score to compare. "
            f"{_way_to_a_score(runs)}"
        )
    _check_one_evaluation(finished)
    return runs


def _way_to_a_score(runs: Sequence[ComparedRun]) -> str:
    """What to do where no run has finished."""
    if unfinished := [run for run in runs if run.outcome == "unfinished"]:
        return f"Finish one with: {command('resume', unfinished[0].path)}"
    if any(run.outcome == "diverged" for run in runs):
        return "Runs diverged: train them with a lower trainer.actor_lr and trainer.critic_lr."
    return "Train them again."


def _check_one_task(runs: Sequence[ComparedRun]) -> None:
    first = runs[0] if runs else None
    for run in runs:
        if first is not None and run.task != first.task:
            raise DataError(
                f"{first.path} was trained on the task {first.task!r}, {run.path} on {run.task!r}: their "
                "scores cannot be compared. Compare the runs of each task separately."
            )


def _check_no_repetition(runs: Sequence[ComparedRun]) -> None:
    seen: dict[tuple[str, str, int], ComparedRun] = {}
    for run in runs:
        key = (run.method, run.base, run.seed)
        if key in seen:
            raise DataError(
                f"{seen[key].path} and {run.path} are both {run.method} with base {run.base} and seed {run.seed}, "
                "and a repeated run adds no evidence. Leave one out, or train it with another seed."
            )
        seen[key] = run


def _check_one_evaluation(finished: Sequence[ComparedRun]) -> None:
    first = finished[0]
    for run in finished:
        if len(run.sets) > 1 or run.set != first.set or len(run.final.rates) != len(first.final.rates):
            raise DataError(
                f"{first.path} and {run.path} were not evaluated on the same held-out prompts with the same decoding "
                f"(sets {first.set} and {', '.join(sorted(run.sets))}). Train them with equal task and evaluation "
                "settings (prompts, temperature, top_p), or compare them separately."
            )
        if run.final.k != first.final.k:
            raise DataError(
                f"The final evaluation of {first.path} has {counted(first.final.k, 'sample')} per prompt, that of "
                f"{run.path} {run.final.k}, and avg@{first.final.k} cannot be compared with avg@{run.final.k}. Train "
                "one of them again with the other's evaluation settings."
            )
