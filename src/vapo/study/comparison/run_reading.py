"""Read one run directory for a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vapo.errors import ConfigError, DataError
from vapo.metrics import EvaluationLabel, EventName, Phase
from vapo.reports.findings import setting_of
from vapo.reports.formatting import one_line
from vapo.reports.runfiles import Record, RunFiles, number
from vapo.session.config import resolve
from vapo.session.layers import file_layer
from vapo.study.cells import base_name
from vapo.study.comparison.compared_run import ComparedRun, Evaluation, Outcome, Pretraining, Resume
from vapo.study.comparison.dynamics import BIAS, CURVES, DECILES

STEP_METRICS = ("step", *CURVES, *(f"{BIAS}/{decile}" for decile in range(DECILES)))
"""The metrics of a training step that a comparison needs."""
PACKAGES = ("vapo", "torch", "transformers")
"""The packages whose versions a comparison names."""
OLD_RESUMED = "settings changed"
"""The event that vapo 0.1 wrote for a resume with other settings, without the step."""


def is_unbegun(path: Path) -> bool:
    """Whether the folder is a cell of a study that failed before its run began."""
    begun = any((path / name).exists() for name in ("config.yaml", "metrics.jsonl"))
    return not begun and bool(_cell_json(path).get("settings"))


def unbegun_run(path: Path) -> ComparedRun:
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


def base_names(files: Sequence[RunFiles]) -> dict[str, str]:
    """Names of base models by `model.policy`: a study's runs pair with other runs of the same base."""
    named = {"builtin": base_name("builtin")}
    for found in files:
        if name := _cell_json(found.path).get("base"):
            named[_policy(found)] = name
    return named


def _policy(files: RunFiles) -> str:
    return str(setting_of(files, "model", "policy", "unknown"))


def run_of(files: RunFiles, bases: Mapping[str, str]) -> ComparedRun:
    """The run of a run directory, named by its card, else by its config; `bases` are those of `base_names`.

    Raises DataError where an older version did not record what a paired comparison needs, or a file is damaged.
    """
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


def effective_settings(files: RunFiles) -> Record:
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
