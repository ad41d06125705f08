"""Tasks by name: built in, data sets, reasoning-gym, installed plug-ins, or a function of the user's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from vapo.errors import ConfigError
from vapo.tasks.common import read_options
from vapo.tasks.gym import PREFIX, Gym, GymOptions
from vapo.tasks.problems import make_problems
from vapo.tasks.registry import BUILTIN, make_task
from vapo.tasks.verifiers.functions import import_function
from vapo.types import Progress, Task

GROUP = "vapo.tasks"

DATA_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "math": ("any problems with answers: task.data, task.eval_data", {}),
    "gsm8k": ("school word problems, 7,473 and 1,319 held out",
              {"data": "openai/gsm8k", "subset": "main", "eval_data": "openai/gsm8k", "eval_subset": "main",
               "max_response_tokens": 512}),
    "math500": ("500 competition problems to evaluate on", {"eval_data": "HuggingFaceH4/MATH-500"}),
    "aime24": ("the 30 problems of AIME 2024 to evaluate on, the paper's test",
               {"eval_data": "HuggingFaceH4/aime_2024", "eval_split": "train"}),
    "dapo-math-17k": ("17,000 competition problems with whole-number answers, the paper's training set",
                      {"data": "BytedTsinghua-SIA/DAPO-Math-17k"}),
}  # fmt: skip
"""Data tasks by name: what they are, and the options that make them (files can be given instead)."""


def find_task(
    name: str, options: Mapping[str, Any], on_progress: Progress | None = None, *, to_train: bool = True
) -> Task:
    """The task of that name with these options; ConfigError or DataError if there is none or it cannot be made.

    `name` is a built-in task, a data task, `reasoning-gym/DATASET`, an entry point of the group `vapo.tasks`, or
    package.module:function; the last two are called with the options and give a `vapo.Task`. Without `to_train`
    training problems are read only if the held-out ones are among them.
    """
    if name in BUILTIN:
        return make_task(name, **options)
    if name in DATA_TASKS:
        made = {**DATA_TASKS[name][1], **options}
        if not to_train and made.get("eval_data"):
            made["data"] = None
        return make_problems(name, made, on_progress)
    if name.startswith(PREFIX):
        known = [f.name for f in fields(GymOptions)]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(
                f"The task {name!r} has no option {unknown[0]!r}. There are: {', '.join(known)}. "
                "Settings of the data set itself go into task.config."
            )
        return Gym(name.removeprefix(PREFIX), read_options(GymOptions, options))
    plugins = installed()
    if name in plugins or ":" in name:
        return import_function(plugins.get(name, name), "task.name")(**options)
    choices = [*BUILTIN, *DATA_TASKS, *plugins]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"There is no task {name!r}; {hint}There are: {', '.join(choices)}, {PREFIX}DATASET, and your own "
        "package.module:function."
    )


def is_known(name: str) -> bool:
    """Whether `find_task` finds a task by this name."""
    return name in BUILTIN or name in DATA_TASKS or name.startswith(PREFIX) or ":" in name or name in installed()


def installed() -> dict[str, str]:
    """Tasks that other packages bring, by name: where their functions are."""
    return {point.name: point.value for point in entry_points(group=GROUP)}
