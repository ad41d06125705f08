"""Read run directories for a comparison; raise errors for runs whose scores cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from vapo.errors import ConfigError, DataError, command, counted
from vapo.evals.statistics import Scores
from vapo.json_text import flatten
from vapo.metrics import EvaluationLabel, EventName, Phase
from vapo.reports.findings import setting_of
from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record, RunFiles, number, read_run
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.study.cells import base_name
from vapo.study.comparison.dynamics import BIAS, CURVES, DECILES
from vapo.study.comparison.methods import distinct_labels, method_settings, table_order

Outcome = Literal["finished", "diverged", "failed", "unfinished"]
STEP_METRICS = ("step", *CURVES, *(f"{BIAS}/{decile}" for decile in range(DECILES)))
"""The metrics of a training step that a comparison needs."""
PACKAGES = ("vapo", "torch", "transformers")
"""The packages whose versions a comparison names."""
OLD_RESUMED = "settings changed"
"""The event that vapo 0.1 wrote for a resume with other settings, without the step."""


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation: its place in training, and the success rate of each prompt."""

    step: int
    k: int
    gradient_steps: int
    samples: int
    """Responses sampled for training before the evaluation, without those of value pretraining."""
    seconds: float
    """Seconds of the training steps before the evaluation, without evaluations and value pretraining."""
    right: Scores
    """(P,) each prompt's number of right samples."""
    valid: Scores
    """(P,) each prompt's number of samples with a verdict."""

    @cached_property
    def rates(self) -> Scores:
        """(P,) share of a prompt's valid samples that are right; nan where none is valid."""
        return np.where(self.valid > 0, self.right / np.maximum(self.valid, 1), np.nan)


@dataclass(frozen=True)
class Pretraining:
    """The cost of the critic before training: the run's own pretraining and that of a shared critic."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    critic: str | None = None
    """The name of the shared critic, if there is one."""
    gradient_steps: int | None = None
    """Gradient steps of the shared critic."""
    explained_variance: float | None = None
    """Explained variance of the finished shared critic, on held-out prompts."""


class Resume(NamedTuple):
    """A resume with other settings: the step (None if it was not recorded) and the changed settings."""

    step: int | None
    changes: list[str]


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison. `evaluations` are in order of steps, and empty unless the run finished."""

    path: str
    """The run directory as the caller named it."""
    task: str
    method: str
    base: str
    seed: int
    outcome: Outcome
    pretraining: Pretraining
    seconds: float
    """Seconds of all training steps, without evaluations."""
    seconds_in_evaluation: float
    versions: Record
    """Versions of the packages, the commit, and the processor."""
    rows: list[Record]
    """The metrics of the training steps, those that a comparison needs: `STEP_METRICS`."""
    settings: Record | None = None
    """The settings that decide the result, which a study writes into cell.json; None without."""
    resumed: tuple[Resume, ...] = ()
    """Resumes with other settings; the run's config.yaml has the last settings only."""
    sets: tuple[str, ...] = ()
    """The held-out sets of the evaluations; more than one is an error."""
    evaluations: tuple[Evaluation, ...] = ()
    kept_from: str | None = None
    """The results.json that the run was taken from; None for a run directory."""

    @property
    def code(self) -> str:
        """The version of the code that made the run: the commit, else vapo's version, as of an installed package."""
        return self.versions.get("commit") or f"vapo {self.versions.get('vapo') or 'of an unknown version'}"

    @property
    def set(self) -> str:
        """The held-out set of the evaluation after training; empty for a run without evaluations."""
        return self.sets[-1] if self.sets else ""

    @property
    def final(self) -> Evaluation:
        """The evaluation after training; finished runs only."""
        return self.evaluations[-1]


def read_compared_runs(run_dirs: Sequence[str | Path], kept: Sequence[ComparedRun] = ()) -> list[ComparedRun]:
    """Read the runs and sort them by method, base and seed, so that the order of `run_dirs` has no effect.

    `kept` are runs that were read elsewhere (`kept_runs`); they are sorted in and checked like the others. All are as
    `with_verdicts` leaves them.

    A cell of a study that failed before its run began has a `cell.json` alone, and counts as failed.

    Raises DataError if a folder is not a run, if an older version did not record what a paired comparison needs, if
    runs have different tasks, held-out sets or k, if a method has the same base and seed twice, or if no run finished.
    """
    unbegun = [path for path in map(Path, run_dirs) if _is_unbegun(path)]
    files = [read_run(path) for path in map(Path, run_dirs) if path not in unbegun]
    bases = _base_names(files)
    runs = [_compared_run(found, bases) for found in files]
    labels = distinct_labels([c.method for c in runs], [method_settings(dict(flatten(_effective(f)))) for f in files])
    runs = [
        *(replace(run, method=label) for run, label in zip(runs, labels, strict=True)),
        *map(_unbegun, unbegun),
        *kept,
    ]
    runs = [with_verdicts(run) for run in runs]
    runs.sort(key=lambda run: (table_order(run.method), run.base, run.seed))
    _check_one_task(runs)
    _check_no_repetition(runs)
    finished = [run for run in runs if run.outcome == "finished"]
    if not finished:
        raise DataError(
            f"None of {counted(len(runs), 'run')} has finished, so there is no score to compare. "
            f"{_way_to_a_score(runs)}"
        )
    _check_one_evaluation(finished)
    return runs


def with_verdicts(run: ComparedRun) -> ComparedRun:
    """The run without evaluations whose samples are all invalid; failed if the one after training is among them."""
    if run.outcome != "finished":
        return run
    if not run.final.valid.any():
        return replace(run, outcome="failed", sets=(), evaluations=())
    return replace(run, evaluations=tuple(e for e in run.evaluations if e.valid.any()))


def _way_to_a_score(runs: Sequence[ComparedRun]) -> str:
    """What to do where no run has finished."""
    if unfinished := [run for run in runs if run.outcome == "unfinished"]:
        return f"Finish one with: {command('resume', unfinished[0].path)}"
    if any(run.outcome == "diverged" for run in runs):
        return "Runs diverged: train them with a lower trainer.actor_lr and trainer.critic_lr."
    return "Train them again."


def _is_unbegun(path: Path) -> bool:
    """Whether the folder is a cell of a study that failed before its run began."""
    begun = any((path / name).exists() for name in ("config.yaml", "metrics.jsonl"))
    return not begun and bool(_cell_json(path).get("settings"))


def _unbegun(path: Path) -> ComparedRun:
    """The run of a cell that failed before its run began."""
    card = _cell_json(path)
    settings = card.get("settings") or {}
    return ComparedRun(
        path=str(path),
        task=str(settings.get("task.name")),
        method=one_line(card.get("method") or path.name),
        base=one_line(card.get("base") or "unknown"),
        seed=int(card.get("seed") or 0),
        outcome="failed",
        pretraining=Pretraining(),
        seconds=0.0,
        seconds_in_evaluation=0.0,
        versions=dict.fromkeys((*PACKAGES, "commit", "processor")),
        rows=[],
        settings=settings or None,
    )


def _base_names(files: Sequence[RunFiles]) -> dict[str, str]:
    """Names of base models by `model.policy`: a study's runs pair with other runs of the same base."""
    named = {"builtin": base_name("builtin")}
    for found in files:
        if name := _cell_json(found.path).get("base"):
            named[_policy(found)] = name
    return named


def _policy(files: RunFiles) -> str:
    return str(setting_of(files, "model", "policy", "unknown"))


def _compared_run(files: RunFiles, bases: Mapping[str, str]) -> ComparedRun:
    card = _cell_json(files.path)
    outcome = _outcome(files, card)
    task, rows, environment = files.config.get("task"), files.phase(Phase.TRAIN), files.environment
    packages = environment.get("packages") or {}
    during = [e for e in files.evaluations if e.get("label") == EvaluationLabel.DURING]
    run = ComparedRun(
        path=str(files.path),
        task=str(task.get("name") if isinstance(task, dict) else task),
        method=one_line(card.get("method") or files.label),
        base=one_line(card.get("base") or bases.get(_policy(files), _policy(files))),
        seed=int(card.get("seed", files.config.get("seed", 0))),
        outcome=outcome,
        pretraining=_pretraining(files, card.get("critic")),
        seconds=_training_seconds(rows),
        seconds_in_evaluation=_sum(rows, "time/evaluate") + _sum(during, "time/evaluate"),
        versions={
            **{package: packages.get(package) for package in PACKAGES},
            "commit": environment.get("commit"),
            "processor": environment.get("cuda") or environment.get("processor"),
        },
        rows=[{key: row[key] for key in STEP_METRICS if key in row} for row in rows],
        settings=card.get("settings"),
        resumed=_resumes(files),
    )
    if outcome != "finished":
        return run
    records = _evaluations_by_step(files)
    evaluations = tuple(_evaluation(files, record) for record in records)
    return replace(run, sets=tuple(dict.fromkeys(str(record["set"]) for record in records)), evaluations=evaluations)


def _effective(files: RunFiles) -> Record:
    """The settings of the run with its expanded method, each under one name."""
    if not files.method:  # the config.yaml of vapo 0.1 has the expanded method
        try:
            return resolve([file_layer(files.name, files.config)]).effective()
        except ConfigError:  # an unknown version
            return files.config
    trainer = {**(files.config.get("trainer") or {}), **(files.method.get("trainer") or {})}
    return {**files.config, "algorithm": files.method.get("algorithm") or {}, "trainer": trainer}


def _cell_json(path: Path) -> Record:
    """The content of cell.json, which a study writes; empty for a run outside of studies."""
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
    if outcome == "diverged" or any(event.get("event") == EventName.DIVERGED for event in files.events):
        return "diverged"
    after = [e for e in files.evaluations if e.get("label") == EvaluationLabel.AFTER]
    if after and int(after[-1]["step"]) >= int(setting_of(files, "trainer", "steps", 0)):  # else it is made longer
        return "finished"
    return "failed" if outcome == "failed" else "unfinished"


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


def _evaluations_by_step(files: RunFiles) -> list[Record]:
    """The evaluations in order of steps; the last is the one after training."""
    by_step = {int(e["step"]): e for e in files.evaluations if e.get("label") != EvaluationLabel.AFTER}
    after = [e for e in files.evaluations if e.get("label") == EvaluationLabel.AFTER][-1]
    by_step[int(after["step"])] = after
    return [by_step[step] for step in sorted(by_step) if step <= int(after["step"])]


def _evaluation(files: RunFiles, record: Record) -> Evaluation:
    step, where = int(record["step"]), f"{files.path}, evaluation at step {record['step']}"
    if any(key not in record for key in ("k", "set", "right", "valid")):
        raise DataError(
            f"{where}: it does not record which prompts were solved, so runs cannot be paired. An older version wrote "
            "it: train this run again with this version, or leave it out."
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
                f"{where}: metrics.jsonl lacks gradient_steps or num_samples for that step. The file is damaged: train "
                "this run again."
            )
    return Evaluation(
        step=step,
        k=int(record["k"]),
        gradient_steps=int(gradient_steps),
        samples=int(samples),
        seconds=_training_seconds([row for row in files.phase(Phase.TRAIN) if int(row.get("step", 0)) <= step]),
        right=right,
        valid=valid,
    )


def _training_seconds(rows: Sequence[Record]) -> float:
    """Seconds of training steps without held-out evaluations, which vapo 0.1 included in `step_time`."""
    return _sum(rows, "step_time") - _sum(rows, "time/evaluate")


def _sum(rows: Sequence[Record], key: str) -> float:
    return float(np.nansum([number(row.get(key)) for row in rows]))


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
