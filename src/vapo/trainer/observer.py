"""Who watches a run: a terminal view, a test, or nobody."""

from __future__ import annotations

from typing import Any, Protocol


class Observer(Protocol):
    """Receives what happens in a run; must not change the run."""

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase begins, or goes on after a resume with `done` of `total` steps behind it."""
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
        """Something worth a line."""
        ...

    def alarm(self, message: str) -> None:
        """Something is probably wrong; says what to do."""
        ...
