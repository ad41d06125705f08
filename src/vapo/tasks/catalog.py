"""Tasks by name: built in, data sets, reasoning-gym, installed plug-ins, or a function of the user's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from vapo.errors import ConfigError, DataError, VapoError
from vapo.tasks.builtin import read_options
from vapo.tasks.gym import PREFIX, Gym, GymOptions
from vapo.tasks.problems import make_problems
from vapo.tasks.registry import BUILTIN, make_task
from vapo.tasks.verifiers.functions import import_function
from vapo.types import Progress, Prompt, Task

GROUP = "vapo.tasks"

TASK_PARTS = ("name", "train", "heldout", "max_response_tokens", "verify")
"""What every task has."""
TASK_METHODS = {
    "verify": ("prompt", "response"),
    "verify_all": ("items", "on_progress"),
    "verify_groups": ("groups", "on_progress"),
    "final_answer": ("response",),
    "close": (),
}
"""With what a task's methods are called; all but the first may be missing."""

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
        return _made(import_function(plugins.get(name, name), "task.name"), name, options)
    choices = [*BUILTIN, *DATA_TASKS, *plugins]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(
        f"There is no task {name!r}; {hint}There are: {', '.join(choices)}, {PREFIX}DATASET, and your own "
        "package.module:function."
    )


def _made(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Task:
    """What a function of the user's makes of the options; ConfigError if it does not take them, or raises."""
    if wrong := _does_not_take(function, **options):
        raise ConfigError(f"task.name {name} does not take these options: {wrong}. It takes {_signature(function)}.")
    try:
        return function(**options)
    except VapoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"task.name {name} raised {type(error).__name__}: {error}. Mend it, or the task's options; --debug shows "
            "where."
        ) from error


def check_task(task: Any, parts: Sequence[str] = ("train", "heldout")) -> None:
    """Nothing. ConfigError, naming the part, unless the object has what `vapo.types.Task` asks for.

    Of prompts the first one of each of the `parts` is looked at.
    """
    kind = type(task).__name__
    for part in TASK_PARTS:
        if not _has(task, part):
            raise ConfigError(
                f"The task is a {kind} without {part!r}. It needs {', '.join(TASK_PARTS)}: see vapo.types.Task."
            )
    if not isinstance(task.name, str) or not task.name:
        raise ConfigError(f"The name of the task, a {kind}, must be a text, got {task.name!r}.")
    what = f"of the task {task.name}, a {kind},"
    limit = task.max_response_tokens
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"max_response_tokens {what} must be a whole number from 1 on, got {limit!r}.")
    for part, arguments in TASK_METHODS.items():
        if _has(task, part) and (wrong := _does_not_take(getattr(task, part), *arguments)):
            taken = f"({', '.join(arguments)})"
            raise ConfigError(f"{part} {what} is called with {taken}: {wrong}.")
    notes = task.notes if _has(task, "notes") else []
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        raise ConfigError(f"notes {what} must be a list of sentences, got a {type(notes).__name__}.")
    for part in parts:
        prompts = getattr(task, part)
        try:
            first = prompts[0] if len(prompts) else None
        except Exception as error:
            raise ConfigError(
                f"{part} {what} must be prompts with a length and an index, such as a list; "
                f"a {type(prompts).__name__} raised {type(error).__name__}: {error}."
            ) from error
        if first is not None:
            check_prompt(first, f"{part}[0] {what}")


def check_prompt(prompt: Any, what: str) -> None:
    """Nothing. DataError, saying what it is, unless the object is a prompt a model can be asked."""
    if not isinstance(prompt, Prompt) or not isinstance(prompt.id, str):
        got = f"one with the id {prompt.id!r}" if isinstance(prompt, Prompt) else f"a {type(prompt).__name__}"
        raise DataError(f"{what} must be a vapo.types.Prompt with a text for an id, got {got}.")
    if isinstance(prompt.text, str):
        return
    messages = prompt.text if isinstance(prompt.text, list | tuple) and prompt.text else [None]
    if not all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in messages):
        raise DataError(f"{what}: its text must be a text, or messages with role and content, got {prompt.text!r:.60}.")


def _has(task: Any, part: str) -> bool:
    try:
        return hasattr(task, part)
    except Exception as error:  # a property of the user's
        raise ConfigError(
            f"{part} of the task, a {type(task).__name__}, raised {type(error).__name__}: {error}. Mend it."
        ) from error


def _does_not_take(function: Any, *arguments: Any, **options: Any) -> str:
    """Why it cannot be called like this, "" if it can, as far as its signature tells."""
    if not callable(function):
        return f"it is a {type(function).__name__}, no function"
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        return str(error)
    except ValueError:  # some that are not written in Python tell nothing
        return ""
    return ""


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except ValueError:
        return "others"


def is_known(name: str) -> bool:
    """Whether `find_task` finds a task by this name."""
    return name in BUILTIN or name in DATA_TASKS or name.startswith(PREFIX) or ":" in name or name in installed()


def installed() -> dict[str, str]:
    """Tasks that other packages bring, by name: where their functions are."""
    return {point.name: point.value for point in entry_points(group=GROUP)}
