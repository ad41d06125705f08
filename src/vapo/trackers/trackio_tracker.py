"""Trackio: local, in its own data base; TRACKIO_PROJECT names the project."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import trackio  # type: ignore[import-not-found]

from vapo.trackers.tracker import COLUMNS, TrackedRun

PROJECT = "vapo"


class TrackioTracker:
    """Figures with their step, samples as tables, alarms as alerts."""

    def __init__(self, run: TrackedRun) -> None:
        self.id = run.earlier or f"{run.name}-{secrets.token_hex(3)}"  # many runs lie in folders of one name
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=self.id, config=dict(run.config), resume="allow"
        )

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(figures), step=step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """See `Tracker`."""
        table = [{name: row[name] for name in COLUMNS} for row in rows]
        self._run.log({"samples": trackio.Table(data=table)}, step=step)

    def alarm(self, message: str, step: int) -> None:
        """See `Tracker`."""
        self._run.alert("vapo", message, step=step)

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish()


def begin(run: TrackedRun) -> TrackioTracker:
    """See `make_tracker`."""
    return TrackioTracker(run)
