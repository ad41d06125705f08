"""`FullTask`: a task with defaults for its missing parts. Only this module looks up the parts of a task by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vapo.errors import ConfigError
from vapo.types import Environment, Episode, Prompt, PromptSet, Verdict

REQUIRED = ("name", "train", "heldout", "max_response_tokens", "verify")
"""Parts that every task has; see `vapo.types.Task`."""
OPTIONAL = (
    "final_answer",
    "vote",
    "verify_all",
    "verify_groups",
    "environment",
    "max_turns",
    "turn_ends",
    "tools",
    "close",
    "notes",
    "options",
    "drops",
    "description",
)
"""Parts that a task may have."""
MAX_TURNS = 16
"""The turns of a task that has an environment and no `max_turns`."""
_ABSENT: Any = object()


class Caution(str):
    """A note that `vapo check` shows as a warning."""


OnProgress = Callable[[int, int], None]
"""Called with the number of judged responses and their total."""


def do_nothing() -> None:
    """The `close` of a task without processes and files."""


@dataclass
class FullTask:
    """A task whose parts are read once, at the start of a run or an evaluation."""

    name: str
    train: PromptSet
    heldout: PromptSet
    max_response_tokens: int
    verify: Callable[[Prompt, str], Verdict]
    final_answer: Callable[[str], str | None] | None = None
    """The short answer in a response."""
    vote: Callable[[str], str | None] | None = None
    """What maj@k counts: equal texts are one vote. None: it counts the final answers."""
    verify_all: Callable[[Sequence[tuple[Prompt, str]], OnProgress], list[Verdict]] | None = None
    """Judges many responses in one call."""
    verify_groups: Callable[[Sequence[Sequence[Episode]], OnProgress], list[Verdict]] | None = None
    """Compares the responses to each prompt; used instead of `verify` and `verify_all`."""
    environment: Callable[[Prompt, int], Environment] | None = None
    """Makes the world of one episode from its prompt and seed; None: an episode is one turn."""
    max_turns: int = MAX_TURNS
    """Turns of the policy after which an episode is over, if its environment has not ended it."""
    turn_ends: Sequence[str] = ()
    """Texts of one token each that end a turn, as a stop token does."""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of the functions that the environment offers to the model."""
    close: Callable[[], None] = do_nothing
    """Ends the processes and closes the files of the task."""
    notes: Sequence[str] = ()
    """Sentences about the problems, which are shown at the start."""
    options: object = None
    """The difficulty, a dataclass. A shipped base model fits one difficulty only."""
    drops: Sequence[object] | None = None
    """The rows that were left out, if the task reads its problems from `task.data`."""
    description: str = ""
    """One line for `vapo tasks`."""
    original: object = field(default=None, repr=False)
    """The object whose parts these are."""
    given: frozenset[str] = field(default=frozenset(), repr=False)
    """The optional parts that the original has."""

    @classmethod
    def of(cls, task: Any) -> FullTask:
        """Read all parts of the task; a FullTask is kept. ConfigError if a required part is missing or raises."""
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
    """The part of the task with that name, or `default`. ConfigError if a property of the user's task raises."""
    try:
        return getattr(task, name, default)
    except Exception as error:
        raise ConfigError(
            f"{name} of the task, a {type(task).__name__}, raised {type(error).__name__}: {error}. Fix it."
        ) from error
