"""The built-in tasks by name, and `make_task`, which makes one with options."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from vapo.errors import ConfigError
from vapo.tasks.builtin import BuiltinTask
from vapo.tasks.chain import Chain, ChainOptions
from vapo.tasks.codebreaker import Codebreaker, CodebreakerOptions
from vapo.tasks.maze import Maze, MazeOptions
from vapo.tasks.walk import Walk, WalkOptions


class Family(NamedTuple):
    """A built-in task family: description, type of the options, and function from options to task."""

    description: str
    options: type
    make: Callable[[Any], BuiltinTask]


BUILTIN: dict[str, Family] = {
    Maze.name: Family(Maze.description, MazeOptions, Maze),
    Walk.name: Family(Walk.description, WalkOptions, Walk),
    Chain.name: Family(Chain.description, ChainOptions, Chain),
    Codebreaker.name: Family(Codebreaker.description, CodebreakerOptions, Codebreaker),
}


def make_task(name: str, **options: Any) -> BuiltinTask:
    """A built-in task with these options. ConfigError for an unknown name, an unknown option or an invalid value."""
    if name not in BUILTIN:
        raise ConfigError(f"There is no built-in task {name!r}{_choices(name, BUILTIN)}")
    family = BUILTIN[name]
    known = [field.name for field in dataclasses.fields(family.options)]
    for option in options:
        if option not in known:
            raise ConfigError(f"The task {name!r} has no option {option!r}{_choices(option, known)}")
    return family.make(family.options(**options))


def _choices(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{hint} There are: {', '.join(known)}."
