"""Finds tasks by name (built-in, data sets, reasoning-gym, plug-ins, functions of the user), and checks them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from vapo.errors import ConfigError, DataError, VapoError
from vapo.tasks.builtin import read_options
from vapo.tasks.full_task import FullTask
from vapo.tasks.gym import NO_GYM, PREFIX, Gym, GymOptions, gym_pool
from vapo.tasks.problem_options import problem_options
from vapo.tasks.problems import ProblemJudge, make_problems
from vapo.tasks.registry import BUILTIN, make_task
from vapo.tasks.row_files import check_rows
from vapo.tasks.verifiers.functions import check_function, check_verifier, import_function
from vapo.types import Progress, Prompt, Task

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
"""Data tasks by name: the description, and the default options."""


def find_task(
    name: str,
    options: Mapping[str, Any],
    on_progress: Progress | None = None,
    *,
    to_train: bool = True,
    graded: bool = False,
) -> Task:
    """The task of that name with these options; ConfigError or DataError if it does not exist or cannot be made.

    `name` is a built-in task, a data task, `reasoning-gym/DATASET`, an entry point of the group `vapo.tasks`, or
    package.module:function. The last two are called with the options and return a `vapo.Task`. Without `to_train`,
    training problems are read only if the held-out problems are taken from them. `graded` says that scores between 0
    and right count: nobody needs to be told of them.
    """
    if name in BUILTIN:
        return make_task(name, **options)
    if name in DATA_TASKS:
        return make_problems(name, _data_options(name, options, to_train), on_progress, graded=graded)
    if name.startswith(PREFIX):
        return Gym(name.removeprefix(PREFIX), _gym_options(name, options))
    return _call(import_function(_function_of(name), "task.name"), name, options)


def find_judge(name: str, options: Mapping[str, Any], *, graded: bool = False, workers: int = 1) -> FullTask:
    """The task of that name for judging only: without its problems where it can do without them.

    What a process beside the trainer judges with. A verifier with processes of its own gets `workers` of them. Raises
    what `find_task` raises; close it in the end.
    """
    if name in DATA_TASKS:
        judge = ProblemJudge(problem_options(name, _data_options(name, options, True)), workers=workers, graded=graded)
        return FullTask(
            name, (), (), 1, judge.verify, verify_all=judge.verify_all, verify_groups=judge.verify_groups,
            close=judge.close, given=frozenset({"verify_all", "verify_groups"}),
        )  # fmt: skip
    if name.startswith(PREFIX):
        pool = gym_pool(name.removeprefix(PREFIX), _gym_options(name, options), workers)
        return FullTask(
            name, (), (), 1, lambda prompt, response: pool.judge([(prompt, response)])[0], verify_all=pool.judge,
            close=pool.close, given=frozenset({"verify_all"}),
        )  # fmt: skip
    return FullTask.of(find_task(name, options, graded=graded))


def check_named(name: str, options: Mapping[str, Any], *, to_train: bool = True) -> None:
    """Raise the errors of `find_task` about names, options and paths.

    Reads no data, starts no process, and imports no code of the user.
    """
    if name in BUILTIN:
        make_task(name, **options)
    elif name in DATA_TASKS:
        read = problem_options(name, _data_options(name, options, to_train))
        for source in filter(None, (read.data, read.eval_data)):
            check_rows(source)
        check_verifier(read.verifier)
        if read.environment is not None:
            check_function(read.environment, "task.environment")
    elif name.startswith(PREFIX):
        _gym_options(name, options)
        if find_spec("reasoning_gym") is None:
            raise ConfigError(NO_GYM)
    else:
        check_function(_function_of(name), "task.name")


def _data_options(name: str, options: Mapping[str, Any], to_train: bool) -> dict[str, Any]:
    """The task's default options with the chosen ones over them; no training data if it is not needed."""
    chosen = {**DATA_TASKS[name][1], **options}
    if not to_train and chosen.get("eval_data"):
        chosen["data"] = None
    return chosen


def _gym_options(name: str, options: Mapping[str, Any]) -> GymOptions:
    known = [f.name for f in fields(GymOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"The task {name!r} has no option {unknown[0]!r}. There are: {', '.join(known)}. "
            "Settings of the data set itself go into task.config."
        )
    return read_options(GymOptions, options)


def _function_of(name: str) -> str:
    """The function that makes a plug-in's task or a user's task; ConfigError for any other name."""
    plugins = installed()
    if name in plugins or ":" in name:
        return plugins.get(name, name)
    choices = [*BUILTIN, *DATA_TASKS, *plugins]
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ConfigError(
        f"There is no task {name!r}{hint} There are: {', '.join(choices)}, {PREFIX}DATASET, and your own "
        "package.module:function."
    )


def _call(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Task:
    """The task that the user's function returns; ConfigError if it does not take the options, or raises."""
    if wrong := _does_not_take(function, **options):
        raise ConfigError(f"task.name {name} does not take these options: {wrong}. It takes {_signature(function)}.")
    try:
        return function(**options)
    except VapoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"task.name {name} raised {type(error).__name__}: {error}. Fix it or the task's options; --debug shows "
            "the line."
        ) from error


def check_task(task: Any, parts: Sequence[str] = ("train", "heldout")) -> FullTask:
    """The task with all its parts. ConfigError, with the part's name, if a part does not fit `vapo.types.Task`.

    Checks the first prompt of each prompt set that `parts` names.
    """
    kind, task = type(task).__name__, FullTask.of(task)
    if not isinstance(task.name, str) or not task.name:
        raise ConfigError(f"The name of the task, a {kind}, must be a text, got {task.name!r}.")
    owner = f"of the task {task.name}, a {kind},"
    limit = task.max_response_tokens
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"max_response_tokens {owner} must be a whole number from 1 on, got {limit!r}.")
    methods: dict[str, tuple[Any, tuple[str, ...]]] = {
        "verify": (task.verify, ("prompt", "response")),
        "verify_all": (task.verify_all, ("items", "on_progress")),
        "verify_groups": (task.verify_groups, ("groups", "on_progress")),
        "final_answer": (task.final_answer, ("response",)),
        "vote": (task.vote, ("response",)),
        "close": (task.close, ()),
    }
    if task.environment is not None:
        methods["environment"] = (task.environment, ("prompt", "seed"))
    for part, (method, arguments) in methods.items():
        present = part == "verify" or part in task.given
        if present and (wrong := _does_not_take(method, *arguments)):
            raise ConfigError(f"{part} {owner} is called with ({', '.join(arguments)}): {wrong}.")
    if not isinstance(task.notes, list | tuple) or not all(isinstance(note, str) for note in task.notes):
        raise ConfigError(f"notes {owner} must be a list of sentences, got a {type(task.notes).__name__}.")
    for part, prompts in (("train", task.train), ("heldout", task.heldout)):
        if part in parts:
            _check_first_prompt(prompts, part, owner)
    return task


def _check_first_prompt(prompts: Any, part: str, owner: str) -> None:
    try:
        first = prompts[0] if len(prompts) else None
    except Exception as error:
        raise ConfigError(
            f"{part} {owner} must be prompts with a length and an index, such as a list; "
            f"a {type(prompts).__name__} raised {type(error).__name__}: {error}."
        ) from error
    if first is not None:
        check_prompt(first, f"{part}[0] {owner}")


def check_prompt(prompt: Any, what: str) -> None:
    """Raise DataError unless the object is a prompt with a text or messages. The error calls the object `what`."""
    if not isinstance(prompt, Prompt) or not isinstance(prompt.id, str):
        got = f"one with the id {prompt.id!r}" if isinstance(prompt, Prompt) else f"a {type(prompt).__name__}"
        raise DataError(f"{what} must be a vapo.types.Prompt with a text for an id, got {got}.")
    if isinstance(prompt.text, str):
        return
    messages = prompt.text if isinstance(prompt.text, list | tuple) and prompt.text else [None]
    if not all(isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in messages):
        raise DataError(f"{what}: its text must be a text, or messages with role and content, got {prompt.text!r:.60}.")


def _does_not_take(function: Any, *arguments: Any, **options: Any) -> str:
    """The reason why the function's signature does not fit these arguments, "" if it fits."""
    if not callable(function):
        return f"it is a {type(function).__name__}, not a function"
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        return str(error)
    except ValueError:  # some functions written in C have no signature
        return ""
    return ""


def _signature(function: Callable[..., Any]) -> str:
    """The parameters of a function, for a message."""
    try:
        return str(inspect.signature(function))
    except ValueError:
        return "other arguments"


def is_known(name: str) -> bool:
    """Whether `find_task` accepts this name."""
    return name in BUILTIN or name in DATA_TASKS or name.startswith(PREFIX) or ":" in name or name in installed()


def installed() -> dict[str, str]:
    """The tasks of installed packages: name and function."""
    return {point.name: point.value for point in entry_points(group=GROUP)}
