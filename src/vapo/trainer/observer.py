"""The protocol of observers, which show a run while it goes on: a terminal view, or a test."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Receives what happens in a run; must not change the run."""

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase begins, or goes on after a resume with `done` of `total` steps finished."""
        ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Within a step: `done` of `total` responses sampled, and the like."""
        ...

    def step(self, metrics: dict[str, Any]) -> None:
        """A step is finished; the line that went into metrics.jsonl."""
        ...

    def evaluation(self, result: dict[str, Any]) -> None:
        """An evaluation is finished; the line that went into evaluations.jsonl."""
        ...

    def note(self, message: str) -> None:
        """Information for the user, in one line."""
        ...

    def alarm(self, message: str) -> None:
        """Something is probably wrong: the message gives the fix."""
        ...


class AlarmRecorder:
    """Forwards everything to another observer and keeps the messages of alarms: a run's folder may not exist yet."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.messages: list[str] = []

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`."""
        self._observer.phase(name, done, total)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self._observer.progress(what, done, total)

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`."""
        self._observer.step(metrics)

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`."""
        self._observer.evaluation(result)

    def note(self, message: str) -> None:
        """See `Observer`."""
        self._observer.note(message)

    def alarm(self, message: str) -> None:
        """See `Observer`; keeps the message."""
        self.messages.append(message)
        self._observer.alarm(message)
