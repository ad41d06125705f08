"""Weights & Biases. Its environment variables hold: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline, WANDB_API_KEY."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wandb

from vapo.trackers.tracker import COLUMNS, TrackedRun

PROJECT = "vapo"


class WandbTracker:
    """Figures against the step, samples as tables, alarms as alerts."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.earlier,
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
            settings=wandb.Settings(silent=True),
        )
        self.id = self._run.id
        # W&B's own step may never go back, as ours does after a resume from an earlier checkpoint
        self._run.define_metric("step")
        self._run.define_metric("pretraining/step")
        self._run.define_metric("pretraining/*", step_metric="pretraining/step")
        self._run.define_metric("*", step_metric="step")

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        own = "pretraining/step" if any(name.startswith("pretraining/") for name in figures) else "step"
        self._run.log({**figures, own: step})

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """See `Tracker`."""
        table = wandb.Table(columns=list(COLUMNS), data=[[row[name] for name in COLUMNS] for row in rows])
        self._run.log({"samples": table, "step": step})

    def alarm(self, message: str, step: int) -> None:
        """See `Tracker`."""
        self._run.alert(title="vapo", text=f"step {step}: {message}", level="WARN")

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


def begin(run: TrackedRun) -> WandbTracker:
    """See `make_tracker`."""
    return WandbTracker(run)
