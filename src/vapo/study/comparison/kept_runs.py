"""Runs inside of a `results.json`: enough of each to compare it again beside other runs, without its folder.

Under `record` a run has its counts of right samples per held-out prompt, one character per prompt, and the training
metrics of a comparison by column. Its settings are in `settings` of the file: what all runs share, and by the run's
hash what is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vapo.errors import DataError
from vapo.evals.statistics import Scores
from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record, number
from vapo.study.cell_identity import settings_hash
from vapo.study.comparison.compared_run import ComparedRun, Evaluation, Outcome, Pretraining, Resume
from vapo.study.comparison.dynamics import BIAS, last_quarter
from vapo.study.comparison.run_reading import STEP_METRICS

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def run_record(run: ComparedRun) -> Record:
    """What `kept_run` needs of a run beside the entries that people read."""
    late = last_quarter(run.rows)
    curves, bias = (
        [key for key in STEP_METRICS if key.startswith(BIAS) is found and any(key in row for row in run.rows)]
        for found in (False, True)
    )
    return {
        "task": run.task,
        "sets": list(run.sets),
        "right": [_packed(e.right) for e in run.evaluations],
        # None where every sample has a verdict
        "valid": [None if (e.valid == e.k).all() else _packed(e.valid) for e in run.evaluations],
        "steps": {key: [row.get(key) for row in run.rows] for key in curves},
        "late_steps": {key: [row.get(key) for row in late] for key in ["step", *bias] if bias},
    }


def settings_table(runs: Sequence[ComparedRun]) -> Record:
    """The settings of the runs: `shared` by all, and those of each method, by hash, that are not."""
    own = {settings_hash(run.settings): run.settings for run in runs if run.settings is not None}
    first = next(iter(own.values()), {})
    shared = {key: value for key, value in first.items() if all(s.get(key, ...) == value for s in own.values())}
    return {
        "shared": shared,
        "own": {name: {k: v for k, v in s.items() if k not in shared} for name, s in own.items()},
    }


def recorded_settings(results: Record, run: Record) -> Record | None:
    """The settings that decided a run's result; None for a run of an earlier version, or outside of a study."""
    table, name = results.get("settings"), run.get("settings")
    if not isinstance(table, Mapping) or name is None or "record" not in run:
        return None
    return {**table["shared"], **table["own"][name]}


def kept_run(results: Record, run: Record, *, path: str, source: str) -> ComparedRun:
    """The run as if it had been read from its folder. Raises DataError if the entry is incomplete or damaged.

    `path` is the folder that the run would have in this study; `source` the name of the file.
    """
    with damage_named(run, source):
        return _kept_run(results, run, path, source)


@contextmanager
def damage_named(run: Record, source: str) -> Iterator[None]:
    """Turn the error of an entry that lacks something into a DataError with the file, the run and the fix."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{source}: the entry of {run.get('run')} is damaged ({type(error).__name__}: {error}). Take the file from "
            "its commit again, or leave it out."
        ) from error


def _kept_run(results: Record, run: Record, path: str, source: str) -> ComparedRun:
    record, at, cost = run["record"], run["evaluations"], run["pretraining"]
    if run["outcome"] not in get_args(Outcome):
        raise ValueError(f"unknown outcome {run['outcome']!r}")
    evaluations = [
        Evaluation(
            step=int(at["step"][i]),
            k=int(at["k"][i]),
            gradient_steps=int(at["gradient_steps"][i]),
            samples=int(at["samples"][i]),
            seconds=number(at["seconds"][i]),
            right=(right := _unpacked(packed)),
            valid=np.full_like(right, at["k"][i]) if record["valid"][i] is None else _unpacked(record["valid"][i]),
        )
        for i, packed in enumerate(record["right"])
    ]
    if len(evaluations) != len(at["step"]):
        raise ValueError(f"{len(evaluations)} evaluations of {len(at['step'])} have their counts")
    return ComparedRun(
        path=path,
        task=one_line(record["task"]),
        method=one_line(run["method"]),
        base=one_line(run["base"]),
        seed=int(run["seed"]),
        outcome=run["outcome"],
        pretraining=Pretraining(
            samples=int(cost["samples"]),
            tokens=int(cost["tokens"]),
            seconds=float(cost["seconds"]),
            steps=int(cost["steps"]),
            critic=cost["shared_critic"],
            gradient_steps=cost["gradient_steps"],
            explained_variance=cost["explained_variance"],
        ),
        seconds=float(run["seconds"]),
        seconds_in_evaluation=float(run["seconds_in_evaluation"]),
        versions=dict(run["versions"]),
        rows=_merged(_rows(record["steps"]), _rows(record["late_steps"])),
        settings=recorded_settings(results, run),
        resumed=tuple(Resume(r["step"], list(r["changes"])) for r in run["resumed"]),
        sets=tuple(record["sets"]),
        evaluations=tuple(evaluations),
        kept_from=run.get("kept_from") or source,
    )


def named_source(path: str | Path) -> str:
    """The name of a results.json in notes: its last folder and its name."""
    return "/".join(Path(path).resolve().parts[-2:])


def _packed(counts: Scores) -> str | list[int]:
    """Counts as one character each, 0 to z; a list if one is above 35."""
    whole = [int(count) for count in counts]
    return "".join(_DIGITS[count] for count in whole) if max(whole, default=0) < len(_DIGITS) else whole


def _unpacked(counts: Any) -> Scores:
    if isinstance(counts, str):
        counts = [_DIGITS.index(character) for character in counts]
    return np.array(counts, dtype=np.float64)


def _rows(columns: Mapping[str, list[Any]]) -> list[Record]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _merged(rows: list[Record], others: list[Record]) -> list[Record]:
    by_step = {row["step"]: row for row in others}
    return [{**row, **by_step.get(row["step"], {})} for row in rows]
