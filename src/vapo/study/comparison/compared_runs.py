"""Read run directories for a comparison; refuse those whose comparison would mislead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from vapo.errors import ConfigError, DataError, counted
from vapo.evals.statistics import Scores
from vapo.metrics import EvaluationLabel, EventName, Phase
from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record, RunFiles, flatten, number, read_run
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.study.comparison.methods import distinct_labels, method_settings, table_order

Outcome = Literal["finished", "diverged", "failed", "unfinished"]
OLD_RESUMED = "settings changed"
"""What vapo 0.1 called a resume under other settings; it did not write the step down."""


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation: where in training it lies, and how often each prompt was solved."""

    step: int
    k: int
    gradient_steps: int
    samples: int
    """Responses sampled for joint training before it; value pretraining not counted."""
    rates: Scores
    """(P,) share of a prompt's valid samples that are right; nan where none is valid."""


@dataclass(frozen=True)
class Pretraining:
    """What the critic cost before joint training: the run's own pretraining, and a shared critic's."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    critic: str | None = None
    """The name of the shared critic, if there was one."""
    gradient_steps: int | None = None
    """Of the shared critic."""
    explained_variance: float | None = None
    """Of the shared critic, on held-out prompts when it was done."""


class Resume(NamedTuple):
    """A resume under other settings: after which step (None where it was not written down), and which settings."""

    step: int | None
    changes: list[str]


@dataclass(frozen=True)
class ComparedRun:
    """One run with its place in the comparison. `evaluations` are in order, and empty unless it finished."""

    files: RunFiles
    method: str
    base: str
    seed: int
    outcome: Outcome
    pretraining: Pretraining
    resumed: tuple[Resume, ...] = ()
    """Where the run went on under other settings than before; its config.yaml has the last ones only."""
    set: str = ""
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def path(self) -> str:
        """The run directory, as it was named."""
        return str(self.files.path)

    @property
    def final(self) -> Evaluation:
        """The evaluation after training; only of finished runs."""
        return self.evaluations[-1]


def read_compared_runs(run_dirs: Sequence[str | Path]) -> list[ComparedRun]:
    """The runs, sorted by method, base and seed, so that the order they are given in changes nothing.

    Raises DataError if a folder is not a run, if a run was made by a version that did not write down what a
    paired comparison needs, if runs are of different tasks, held-out sets or k, if one method has a base and
    seed twice, or if no run has finished.
    """
    runs = [_read_run(Path(path)) for path in run_dirs]
    labels = distinct_labels(
        [c.method for c in runs], [method_settings(dict(flatten(_effective(c.files)))) for c in runs]
    )
    runs = [replace(run, method=label) for run, label in zip(runs, labels, strict=True)]
    runs.sort(key=lambda run: (table_order(run.method), run.base, run.seed))
    _check_one_task(runs)
    _check_no_repetition(runs)
    finished = [run for run in runs if run.outcome == "finished"]
    if not finished:
        raise DataError(
            f"None of {counted(len(runs), 'run')} has finished, so there is no score to compare. "
            "Finish one with: vapo resume RUN"
        )
    _check_one_evaluation(finished)
    return runs


def task_of(run: ComparedRun) -> str:
    """The name of the task a run was trained on."""
    task = run.files.config.get("task")
    return str(task.get("name") if isinstance(task, dict) else task)


def _read_run(path: Path) -> ComparedRun:
    files = read_run(path)
    card = _cell_json(path)
    outcome = _outcome(files, card)
    model = files.config.get("model") or {}
    run = ComparedRun(
        files=files,
        method=one_line(card.get("method") or files.label),
        base=one_line(card.get("base") or model.get("policy") or "unknown"),
        seed=int(card.get("seed", files.config.get("seed", 0))),
        outcome=outcome,
        pretraining=_pretraining(files, card.get("critic")),
        resumed=_resumes(files),
    )
    if outcome != "finished":
        return run
    records = _in_order(files)
    evaluations = tuple(_evaluation(files, record) for record in records)
    return replace(run, set=str(records[-1]["set"]), evaluations=evaluations)


def _effective(files: RunFiles) -> Record:
    """What ran, every number under its one name."""
    if not files.method:  # a run of vapo 0.1, whose config.yaml spells the method out
        try:
            return resolve([file_layer(files.name, files.config)]).effective()
        except ConfigError:  # of a version that is neither
            return files.config
    trainer = {**(files.config.get("trainer") or {}), **(files.method.get("trainer") or {})}
    return {**files.config, "algorithm": files.method.get("algorithm") or {}, "trainer": trainer}


def _cell_json(path: Path) -> Record:
    """What a study wrote about the run; empty for a run outside of studies."""
    file = path / "cell.json"
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}. Delete it to take method and seed from config.yaml.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} should hold an object. Delete it to take method and seed from config.yaml.")
    return content


def _outcome(files: RunFiles, card: Record) -> Outcome:
    outcome = card.get("outcome")
    if outcome is not None and outcome not in get_args(Outcome):
        raise DataError(f"{files.path / 'cell.json'}: unknown outcome {outcome!r}; use one of {get_args(Outcome)}.")
    if outcome in ("diverged", "failed"):
        return outcome
    if any(event.get("event") == EventName.DIVERGED for event in files.events):
        return "diverged"
    return "finished" if any(e.get("label") == EvaluationLabel.AFTER for e in files.evaluations) else "unfinished"


def _resumes(files: RunFiles) -> tuple[Resume, ...]:
    events = [e for e in files.events if e.get("event") in (EventName.RESUMED, OLD_RESUMED)]
    return tuple(Resume(e.get("step"), [one_line(c) for c in e["changes"]]) for e in events if e.get("changes"))


def _pretraining(files: RunFiles, shared: Any) -> Pretraining:
    rows = files.phase(Phase.PRETRAIN)
    own = Pretraining(
        samples=int(_last(rows, "num_samples")),
        tokens=int(_last(rows, "num_tokens")),
        seconds=float(np.nansum([number(row.get("step_time")) for row in rows])),
        steps=len(rows),
    )
    if not isinstance(shared, dict):
        return own
    return Pretraining(
        samples=own.samples + int(shared.get("samples") or 0),
        tokens=own.tokens + int(shared.get("tokens") or 0),
        seconds=own.seconds + float(shared.get("seconds") or 0.0),
        steps=own.steps,
        critic=one_line(shared.get("name") or "shared"),
        gradient_steps=int(shared.get("gradient_steps") or 0),
        explained_variance=number(shared.get("explained_variance")),
    )


def _last(rows: Sequence[Record], key: str) -> float:
    return next((n for row in reversed(rows) if not np.isnan(n := number(row.get(key)))), 0.0)


def _in_order(files: RunFiles) -> list[Record]:
    """The evaluations by step, the last one being the one after training."""
    by_step = {int(e["step"]): e for e in files.evaluations if e.get("label") != EvaluationLabel.AFTER}
    after = [e for e in files.evaluations if e.get("label") == EvaluationLabel.AFTER][-1]
    by_step[int(after["step"])] = after
    return [by_step[step] for step in sorted(by_step) if step <= int(after["step"])]


def _evaluation(files: RunFiles, record: Record) -> Evaluation:
    step, where = int(record["step"]), f"{files.path}, evaluation at step {record['step']}"
    if any(key not in record for key in ("k", "set", "right", "valid")):
        raise DataError(
            f"{where}: it does not say which prompts were solved, so runs cannot be paired. It was written by an "
            "older version: train this run again with this version, or leave it out."
        )
    right, valid = (np.asarray(record[key], dtype=np.float64) for key in ("right", "valid"))
    if right.ndim != 1 or right.shape != valid.shape or not len(right) or (right > valid).any() or (right < 0).any():
        raise DataError(
            f"{where}: `right` and `valid` must count the samples of each held-out prompt, right ones among "
            f"valid ones; found {right.shape} and {valid.shape}. The file is damaged: train this run again."
        )
    gradient_steps = samples = 0.0
    if step:
        row = next((row for row in files.phase(Phase.TRAIN) if row.get("step") == step), {})
        gradient_steps, total = number(row.get("gradient_steps")), number(row.get("num_samples"))
        samples = total - _last(files.phase(Phase.PRETRAIN), "num_samples")
        if np.isnan(gradient_steps) or np.isnan(samples):
            raise DataError(
                f"{where}: metrics.jsonl has no gradient_steps and num_samples for that step, so the evaluation has "
                "no place on the axes. The file is damaged: train this run again."
            )
    return Evaluation(
        step=step,
        k=int(record["k"]),
        gradient_steps=int(gradient_steps),
        samples=int(samples),
        rates=np.where(valid > 0, right / np.maximum(valid, 1), np.nan),
    )


def _check_one_task(runs: Sequence[ComparedRun]) -> None:
    first = runs[0] if runs else None
    for run in runs:
        if first is not None and task_of(run) != task_of(first):
            raise DataError(
                f"{first.path} was trained on the task {task_of(first)!r}, {run.path} on {task_of(run)!r}: their "
                "scores say nothing about each other. Compare each task's runs on their own."
            )


def _check_no_repetition(runs: Sequence[ComparedRun]) -> None:
    seen: dict[tuple[str, str, int], ComparedRun] = {}
    for run in runs:
        key = (run.method, run.base, run.seed)
        if key in seen:
            raise DataError(
                f"{seen[key].path} and {run.path} are both {run.method} with base {run.base} and seed {run.seed}: "
                "the same run twice is no evidence. Leave one out, or train it with another seed."
            )
        seen[key] = run


def _check_one_evaluation(finished: Sequence[ComparedRun]) -> None:
    first = finished[0]
    for run in finished:
        sets = {str(e["set"]) for e in _in_order(run.files)}
        if len(sets) > 1 or run.set != first.set or len(run.final.rates) != len(first.final.rates):
            raise DataError(
                f"{first.path} and {run.path} were not evaluated on the same held-out prompts with the same decoding "
                f"(sets {first.set} and {', '.join(sorted(sets))}). Train them with equal task and evaluation "
                "settings (prompts, temperature, top_p), or compare them apart."
            )
        if run.final.k != first.final.k:
            raise DataError(
                f"The final evaluation of {first.path} has {counted(first.final.k, 'sample')} per prompt, that of "
                f"{run.path} {run.final.k}: avg@{first.final.k} and avg@{run.final.k} are not one score. Train one of "
                "them again with the other's evaluation settings."
            )
