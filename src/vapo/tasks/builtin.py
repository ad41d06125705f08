"""Functions shared by the built-in tasks: splitting prompts, judging responses, checking options."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from vapo.errors import ConfigError, counted
from vapo.ranges import RANGE, Range
from vapo.tasks.verifiers.pool import MAX_RESPONSE_CHARACTERS
from vapo.tasks.words import DONE, FILLERS, LOST
from vapo.type_words import expected, shown
from vapo.types import Prompt, Task, Verdict, WrongKind, stable_hash

T = TypeVar("T")
Options = TypeVar("Options")


class BuiltinTask(Task, Protocol):
    """A task with a description, an example, and the noisy traces its base model is trained on."""

    @property
    def description(self) -> str:
        """One line for `vapo tasks`."""
        ...

    @property
    def max_response_tokens(self) -> int:
        """The limit on response tokens, stop token included, for which the task was designed."""
        ...

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of its prompts and responses."""
        ...

    @property
    def options(self) -> object:
        """The difficulty of this task, a frozen dataclass."""
        ...

    @property
    def clumsiness(self) -> object:
        """How often the solver of `noisy_trace` errs, a frozen dataclass."""
        ...

    def example(self) -> tuple[Prompt, str]:
        """A training prompt and a right response."""
        ...

    def noisy_trace(self, rng: random.Random) -> tuple[Prompt, str]:
        """A prompt that is not held out, and the response of a solver that errs, which is usually wrong."""
        ...


def check_range(option: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError, with the option and its range, if the value is not a number in the range."""
    whole = isinstance(low, int) and isinstance(high, int)
    fits = isinstance(value, int) if whole else isinstance(value, int | float)
    if isinstance(value, bool) or not fits or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"task.{option} must be {kind} from {low} to {high}, got {value!r}.")


def check_options(options: Any) -> None:
    """`check_range` for every option of the dataclass that was declared with `vapo.ranges.number`."""
    for option in fields(options):
        allowed: Range | None = option.metadata.get(RANGE)
        if allowed is not None:
            assert allowed.ge is not None
            assert allowed.le is not None
            check_range(option.name, getattr(options, option.name), allowed.ge, allowed.le)


def split(
    prompts: Iterable[Prompt], heldout: int, smallest_train: int = 16
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """`(train, heldout)`: disjoint and in the order of a hash of the ids, so that the first n are a random sample.

    ConfigError if fewer than `smallest_train` prompts are left for training.
    """
    shuffled = sorted(prompts, key=lambda prompt: stable_hash("split", prompt.id))
    if len(shuffled) < heldout + smallest_train:
        raise ConfigError(
            f"These task options allow only {counted(len(shuffled), 'prompt')}: too few for task.heldout={heldout} "
            f"and at least {smallest_train} to train on. Widen the distance range, or lower task.heldout."
        )
    return tuple(shuffled[heldout:]), tuple(shuffled[:heldout])


def decisive_words(response: str) -> list[str] | Verdict:
    """The words of a response without fillers, or the verdict on a response that is too long or has no last word."""
    if len(response) > MAX_RESPONSE_CHARACTERS:
        return wrong("too long to judge", "unreadable")
    words = response.split()
    if words and words[-1] in FILLERS:
        return wrong(f"ends with {words[-1]!r}, not with a last word", "no_answer")
    words = [word for word in words if word not in FILLERS]
    return words or wrong("empty response", "no_answer")


def judge_moves(
    words: Sequence[str],
    place: T,
    goal: T,
    *,
    moves: Collection[str],
    expected: str,
    named: Callable[[T, str], str],
    make: Callable[[T, str, str], tuple[T, str]],
    stopped: Callable[[T], str],
) -> Verdict:
    """Right if moves and their true outcomes alternate, and the last word is `done`, written on the goal.

    `words` have no fillers. `moves` are the allowed moves, described by `expected`. `make(place, move, outcome)`
    returns the new place, and the error in the written outcome or "". `named(place, move)` describes a move without
    outcome, and `stopped(place)` a stop outside the goal.
    """
    count = 0
    for at in range(0, len(words), 2):
        word = words[at]
        if word in (DONE, LOST):
            if at + 1 < len(words):
                return wrong(f"goes on with {quote(words[at + 1])} after {word!r}")
            if word == LOST:
                return wrong(f"gave up at {place}", "no_answer")
            return Verdict("right") if place == goal else wrong(stopped(place))
        if word not in moves:
            return wrong(f"expected {expected} after move {count}, got {quote(word)}")
        count += 1
        if at + 1 == len(words):
            return wrong(f"move {count}, {named(place, word)}, has no outcome")
        place, error = make(place, word, words[at + 1])
        if error:
            return wrong(f"move {count}: {error}")
    return wrong(f"never stopped: at {place} after {counted(count, 'move')}", "no_answer")


class Quitting(Protocol):
    """Probabilities, per decision, with which the solver of noisy traces ends a response."""

    @property
    def notice(self) -> float:
        """Of `done` on the goal."""
        ...

    @property
    def err(self) -> float:
        """Of `done` anywhere else."""
        ...

    @property
    def despair(self) -> float:
        """Of `lost`."""
        ...


def last_word(rng: random.Random, clumsy: Quitting, arrived: bool) -> str | None:
    """The last word if the solver stops here, None if it continues."""
    if arrived:
        return DONE if rng.random() < clumsy.notice else None
    stops = clumsy.err + clumsy.despair
    if rng.random() >= stops:
        return None
    return DONE if rng.random() * stops < clumsy.err else LOST


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """A random item. The shipped models depend on these draws.

    Uses `random()` because its values, unlike those of `choice`, are the same in all versions of Python.
    """
    return items[int(rng.random() * len(items))]


def mumble(rng: random.Random, chance: float) -> list[str]:
    """Zero or more filler words. Each is followed by another one with probability `chance`."""
    words: list[str] = []
    while rng.random() < chance:
        words.append(rng.choice(FILLERS))
    return words


def wrong(reason: str, kind: WrongKind = "wrong_answer") -> Verdict:
    """The verdict on a wrong response."""
    return Verdict("wrong", reason, kind)


def quote(word: str) -> str:
    """A word in a form for reasons: in quotes, with unprintable characters escaped, cut at 20 characters."""
    return ascii(word if len(word) <= 20 else word[:20] + "...")


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """The options of a task from a file or the command line; ConfigError for a value of a wrong type."""
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]["loc"][0]
        problems = [problem for problem in error.errors() if problem["loc"][0] == first]
        got = options.get(str(first), problems[0].get("input"))
        raise ConfigError(f"task.{first} takes {_takes(problems)}, got {shown(got)}.") from error


def _takes(problems: Sequence[Any]) -> str:
    """What an option takes; of a mapping, what the entry takes that has the problems."""
    entries = [str(problem["loc"][1]) for problem in problems if len(problem["loc"]) > 1]
    inside = f"{{{entries[0]}: ...}} with " if entries else ""
    return inside + expected(problems)
