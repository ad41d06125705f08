"""A task with all parts it may have: those it lacks have their defaults. The one place that looks parts up by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vapo.errors import ConfigError
from vapo.types import Episode, Prompt, PromptSet, Verdict

REQUIRED = ("name", "train", "heldout", "max_response_tokens", "verify")
"""What every task has: see `vapo.types.Task`."""
OPTIONAL = (
    "final_answer",
    "verify_all",
    "verify_groups",
    "close",
    "notes",
    "options",
    "drops",
    "description",
)
"""What a task may have besides."""
_ABSENT: Any = object()

OnProgress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


def do_nothing() -> None:
    """The `close` of a task that holds nothing."""


@dataclass
class FullTask:
    """A task whose parts were read once, when a run or an evaluation took it in."""

    name: str
    train: PromptSet
    heldout: PromptSet
    max_response_tokens: int
    verify: Callable[[Prompt, str], Verdict]
    final_answer: Callable[[str], str | None] | None = None
    """The short answer in a response, on which maj@k votes."""
    verify_all: Callable[[Sequence[tuple[Prompt, str]], OnProgress], list[Verdict]] | None = None
    """Judges many responses faster than one by one."""
    verify_groups: Callable[[Sequence[Sequence[Episode]], OnProgress], list[Verdict]] | None = None
    """Judges the responses to a prompt against each other; used instead of the other two."""
    close: Callable[[], None] = do_nothing
    """Ends the processes and closes the files that the task holds."""
    notes: Sequence[str] = ()
    """Sentences about the task's problems, which the user sees at the start."""
    options: object = None
    """The task's difficulty, a dataclass: a shipped base model fits one difficulty only."""
    drops: Sequence[object] | None = None
    """The rows that were left out, for a task that reads its problems from `task.data`."""
    description: str = ""
    """One line for `vapo tasks`."""
    original: object = field(default=None, repr=False)
    """The object the parts were read from."""
    given: frozenset[str] = field(default=frozenset(), repr=False)
    """The optional parts that the original has."""

    @classmethod
    def of(cls, task: Any) -> FullTask:
        """All parts of the task, read now; a FullTask as it is. ConfigError if a required one is missing or raises."""
        if isinstance(task, FullTask):
            return task
        required = {name: part_of(task, name) for name in REQUIRED}
        if missing := [name for name, part in required.items() if part is _ABSENT]:
            raise ConfigError(
                f"The task is a {type(task).__name__} without {missing[0]!r}. It needs {', '.join(REQUIRED)}: see "
                "vapo.types.Task."
            )
        found = {name: part_of(task, name) for name in OPTIONAL}
        given = {name: part for name, part in found.items() if part is not _ABSENT}
        return cls(**required, **given, original=task, given=frozenset(given))


def part_of(task: Any, name: str, default: Any = _ABSENT) -> Any:
    """The task's part of that name, `default` if it has none. ConfigError if a property of the user's raises."""
    try:
        return getattr(task, name, default)
    except Exception as error:
        raise ConfigError(
            f"{name} of the task, a {type(task).__name__}, raised {type(error).__name__}: {error}. Mend it."
        ) from error
