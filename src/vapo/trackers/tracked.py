"""An observer that also tells trackers, from a thread of its own: one that fails or hangs never holds up the run."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from vapo.json_text import flatten, json_text
from vapo.metrics import Phase
from vapo.trackers.tracker import COLUMNS, TrackedRun, Tracker, TrackerName, make_tracker
from vapo.trainer.observer import Observer

IDS = "trackers.json"
"""In the run's folder: the ids by which trackers find the run again."""
SAMPLES = 32
"""Responses of a step in a tracker's table."""
WAITING = 1000
"""Messages that may wait for a slow tracker; more are dropped."""
END_S = 30.0
"""How long the end of a run waits for trackers."""

Message = Callable[[Tracker], None]


class TrackingObserver:
    """Forwards everything to `view`, and sends figures, samples and alarms to the trackers.

    Each tracker has a thread and a queue. One that raises is dropped with an alarm; so is what a full queue cannot
    take. Trackers read the responses of a step from the rollout files that the run has written.
    """

    def __init__(self, view: Observer, names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any]) -> None:
        self._view = view
        self._folder, self._config = folder, config
        self._step = 0
        self._lines = [_Line(name, self._lost) for name in names]

    def begin(self, step: int) -> None:
        """Connect the trackers to a run that goes on from this joint step (0: that begins)."""
        self._step = step
        path = self._folder / IDS
        ids = _read_ids(path)
        for line in self._lines:
            line.begin(TrackedRun(self._folder, self._config, step, ids.get(line.name)))
            if line.id is not None:
                ids[line.name] = line.id
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json_text(ids, indent=1))
        temporary.rename(path)

    def close(self, *, failed: bool) -> None:
        """Let the trackers send what is left, for `END_S` seconds at most."""
        for line in self._lines:
            line.put(lambda tracker: tracker.close(failed=failed))
        deadline = time.monotonic() + END_S
        for line in self._lines:
            if not line.end(deadline):
                self._view.note(f"{line.name} did not end within {END_S:g} s and was left behind")

    def _send(self, message: Message) -> None:
        for line in self._lines:
            line.put(message)

    def _lost(self, name: str, why: str) -> None:
        self._view.alarm(f"The tracker {name} is left out from here: {why}. The run goes on; metrics.jsonl has it all.")

    # ------------------------------------------------------------------ Observer

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`."""
        self._view.phase(name, done, total)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self._view.progress(what, done, total)

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`."""
        self._view.step(metrics)
        step, figures = int(metrics["step"]), numbers(metrics)
        if metrics["phase"] != Phase.TRAIN:
            figures = {f"pretraining/{name}": value for name, value in figures.items()}
            self._send(lambda tracker: tracker.figures(figures, step))
            return
        self._step = step
        self._send(lambda tracker: tracker.figures(figures, step))
        path = self._folder / "rollouts" / f"step_{step:06d}.jsonl.gz"
        if path.exists():
            self._send(lambda tracker: tracker.samples(samples_of(path), step))

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`."""
        self._view.evaluation(result)
        scores = {name: value for name, value in result.items() if name not in ("step", "k", "prompts")}
        figures = {f"evaluation/{name}": value for name, value in numbers(scores).items()}
        step = int(result["step"])
        self._send(lambda tracker: tracker.figures(figures, step))

    def note(self, message: str) -> None:
        """See `Observer`."""
        self._view.note(message)

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self._view.alarm(message)
        step = self._step
        self._send(lambda tracker: tracker.alarm(message, step))


class _Line:
    """A tracker, its thread, and what waits for it."""

    def __init__(self, name: TrackerName, lost: Callable[[str, str], None]) -> None:
        self.name: TrackerName = name
        self.id: str | None = None
        self._lost = lost
        self._tracker: Tracker | None = None
        self._queue: Queue[Message | None] = Queue(WAITING)
        self._thread: Thread | None = None

    def begin(self, run: TrackedRun) -> None:
        """Connect, for `END_S` seconds at most; the id is known then. A tracker that cannot be reached is left out."""
        failure: list[str] = []
        connected: list[Tracker] = []

        def connect() -> None:
            try:
                connected.append(make_tracker(self.name, run))
            except (Exception, SystemExit) as error:
                failure.append(f"{type(error).__name__}: {error}")

        thread = Thread(target=connect, name=f"{self.name} begins", daemon=True)
        thread.start()
        thread.join(END_S)
        if not connected:
            self._lost(self.name, failure[0] if failure else f"no answer within {END_S:g} s")
            return
        self._tracker = connected[0]
        self.id = self._tracker.id
        self._thread = Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Send later; nothing to a tracker that was left out."""
        if self._tracker is None:
            return
        try:
            self._queue.put_nowait(message)
        except Full:
            self._tracker = None
            self._lost(self.name, f"{WAITING} messages wait for it")

    def end(self, deadline: float) -> bool:
        """Wait until everything is sent; False if that takes longer."""
        if self._thread is None:
            return True
        try:
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        except Full:
            return False
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            tracker = self._tracker
            if tracker is None:
                continue
            try:
                message(tracker)
            except (Exception, SystemExit) as error:
                self._tracker = None
                self._lost(self.name, f"{type(error).__name__}: {error}")


def _read_ids(path: Path) -> dict[str, str]:
    """The ids that an earlier start has written; none from a file that is cut short."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of nested data, by dotted names; no booleans."""
    return {
        name: value
        for name, value in flatten(values)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def samples_of(path: Path) -> list[dict[str, Any]]:
    """The first responses of a rollout file, under the names of `COLUMNS`; prompts of messages as one text."""
    with gzip.open(path, "rt") as file:
        lines = [json.loads(line) for line in islice(file, SAMPLES)]
    for line in lines:
        if not isinstance(line["prompt"], str):
            line["prompt"] = "\n".join(f"{m['role']}: {m['content']}" for m in line["prompt"])
    return [{name: line[name] for name in COLUMNS} for line in lines]
