"""Observers, which are told what happens in a run while it goes on: a terminal view, a user's class, a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """Receives what happens in a run; must not change the run.

    A subclass writes the methods that it needs: those here do nothing. Any class with all six is an observer, too.
    """

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase begins, or goes on after a resume with `done` of `total` steps finished."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Within a step: `done` of `total` responses sampled, and the like."""

    def step(self, metrics: dict[str, Any]) -> None:
        """A step is finished; the line that went into metrics.jsonl."""

    def evaluation(self, result: dict[str, Any]) -> None:
        """An evaluation is finished; the line that went into evaluations.jsonl."""

    def note(self, message: str) -> None:
        """Information for the user, in one line."""

    def alarm(self, message: str) -> None:
        """Something is probably wrong: the message gives the fix."""


class Observers:
    """Forwards everything to a view, then to the observers of a user. One that raises is left out, with an alarm."""

    def __init__(self, view: Observer, others: Sequence[Observer]) -> None:
        self._view, self._others = view, list(others)

    def phase(self, name: str, done: int, total: int) -> None:
        """See `Observer`."""
        self._view.phase(name, done, total)
        self._tell(lambda other: other.phase(name, done, total))

    def progress(self, what: str, done: int, total: int | None) -> None:
        """See `Observer`."""
        self._view.progress(what, done, total)
        self._tell(lambda other: other.progress(what, done, total))

    def step(self, metrics: dict[str, Any]) -> None:
        """See `Observer`; each gets a copy."""
        self._view.step(metrics)
        self._tell(lambda other: other.step(dict(metrics)))

    def evaluation(self, result: dict[str, Any]) -> None:
        """See `Observer`; each gets a copy."""
        self._view.evaluation(result)
        self._tell(lambda other: other.evaluation(dict(result)))

    def note(self, message: str) -> None:
        """See `Observer`."""
        self._view.note(message)
        self._tell(lambda other: other.note(message))

    def alarm(self, message: str) -> None:
        """See `Observer`."""
        self._view.alarm(message)
        self._tell(lambda other: other.alarm(message))

    def _tell(self, message: Callable[[Observer], None]) -> None:
        for other in list(self._others):
            try:
                message(other)
            except Exception as error:  # the class is the user's
                self._others.remove(other)
                self.alarm(
                    f"The observer {type(other).__name__} is left out from here: it raised {type(error).__name__}: "
                    f"{error}. The run goes on."
                )


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
