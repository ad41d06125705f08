"""MLflow. MLFLOW_TRACKING_URI says where (a server, `sqlite:///mlflow.db`, a folder), MLFLOW_EXPERIMENT_NAME what."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from vapo.json_text import flatten, json_text
from vapo.trackers.tracker import COLUMNS, TrackedRun

EXPERIMENT = "vapo"
_LONGEST_PARAMETER = 500
_AT_ONCE = 100
"""Parameters of one request at most."""


class MlflowTracker:
    """Figures as metrics, settings as parameters; samples as JSON lines and alarms as texts among the artifacts."""

    def __init__(self, run: TrackedRun) -> None:
        self._client = MlflowClient()
        if run.earlier is not None:
            self.id = run.earlier
            self._client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        settings = [Param(_key(key), str(value)[:_LONGEST_PARAMETER]) for key, value in flatten(run.config)]
        for start in range(0, len(settings), _AT_ONCE):
            self._client.log_batch(self.id, params=settings[start : start + _AT_ONCE])

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), value, now, step) for name, value in figures.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """See `Tracker`."""
        text = "".join(json_text({name: row[name] for name in COLUMNS}) + "\n" for row in rows)
        self._client.log_text(self.id, text, f"samples/step_{step:06d}.jsonl")

    def alarm(self, message: str, step: int) -> None:
        """See `Tracker`."""
        self._client.log_text(self.id, f"step {step}: {message}\n", f"alarms/{time.time_ns()}.txt")

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _key(name: str) -> str:
    """The name in the characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name)


def begin(run: TrackedRun) -> MlflowTracker:
    """See `make_tracker`."""
    return MlflowTracker(run)
