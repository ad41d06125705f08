"""Verifiers by name: ours, a function of the user's, one from an installed package, or a TRL reward function."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, SupportsFloat

from vapo.errors import ConfigError
from vapo.types import Prompt, Verdict, Verifier

GROUP = "vapo.verifiers"
FACTORIES = {
    "math": "vapo.tasks.verifiers.maths:make_verifier",
    "reasoning-gym": "vapo.tasks.gym:make_verifier",
}
EXACT = "vapo.tasks.verifiers.functions:judge_exact"
RIGHT_AT = 0.99
"""A score counts as right from here on: rewards are outcomes, so partial credit is none."""


def load_verifier(name: str, *, right_at: float = RIGHT_AT, **options: Any) -> Verifier:
    """The verifier of that name, imported; call it in a worker process only.

    `name` is `math`, `reasoning-gym`, `exact`, an entry point of the group `vapo.verifiers`,
    `package.module:function` or `path/to/file.py:function`. The function takes what it names among `prompt` (a
    `vapo.types.Prompt`), `response`, `answer` and the columns of the data set; or two unnamed things, prompt and
    response; or TRL's `prompts`, `completions` and columns. It gives a `Verdict`, a bool, or a score (right from
    `right_at` on); None or nan means that it cannot tell.

    Raises ConfigError if there is no such function.
    """
    if name in FACTORIES:
        return import_function(FACTORIES[name], "task.verifier")(**options)
    points = {"exact": EXACT, **{point.name: point.value for point in entry_points(group=GROUP)}}
    return adapted(import_function(points.get(name, name), "task.verifier"), right_at)


def name_of(function: Callable[..., Any]) -> str:
    """`path/to/file.py:function`, under which a worker process finds a function that was handed over in Python.

    Raises ConfigError for one that no other process could find: a lambda, a method, or one inside of another.
    """
    file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    if file is None or not Path(file).exists() or not function.__qualname__.isidentifier():
        raise ConfigError(
            f"The verifier {getattr(function, '__qualname__', function)!r} must be a plain function at the top of a "
            ".py file: worker processes import it from there. Move it into one."
        )
    return f"{Path(file).resolve()}:{function.__qualname__}"


def adapted(function: Callable[..., Any], right_at: float = RIGHT_AT) -> Verifier:
    """Any of the signatures and results that `load_verifier` tells of, as a verifier."""
    parameters = inspect.signature(function).parameters
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.name in named}
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # called by position only where that is surely meant: (output, gold) would get a prompt for an output
    first = positional[0] if len(positional) == 2 and "response" not in parameters else None
    unnamed = first is not None and (first.kind is first.POSITIONAL_ONLY or first.name in ("prompt", "p"))

    def verify(prompt: Prompt, response: str, /) -> Verdict:
        if "completions" in parameters:
            values = _as_trl(prompt, response)
        else:
            values = {**prompt.columns, "prompt": prompt, "response": response, "answer": prompt.answer}
            if unnamed:
                return to_verdict(function(prompt, response), right_at)
        if missing := sorted(needed - values.keys()):
            return Verdict("invalid", f"the verifier asks for {missing[0]!r}; there are: {', '.join(sorted(values))}")
        given = values if takes_rest else {key: value for key, value in values.items() if key in parameters}
        return to_verdict(function(**given), right_at)

    return verify


def to_verdict(result: Any, right_at: float = RIGHT_AT) -> Verdict:
    """What a verifier gave back, as a verdict."""
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict("invalid", "the verifier gave None")
    if not isinstance(result, SupportsFloat):
        return Verdict("invalid", f"the verifier gave a {type(result).__name__}, not a verdict, a bool or a score")
    score = float(result)
    if math.isnan(score):
        return Verdict("invalid", "the verifier gave nan")
    return Verdict("right") if score >= right_at else Verdict("wrong", f"score {score:g}")


def judge_exact(response: str, answer: Any) -> Verdict:
    """`verify_exact`, with why a response is wrong."""
    from vapo.tasks.verifiers.answers import last_answer

    if verify_exact(response, answer):
        return Verdict("right")
    if last_answer(response) is None:
        return Verdict("wrong", "no marked answer", "no_answer")
    return Verdict("wrong", "another answer", "wrong_answer")


def verify_exact(response: str, answer: Any) -> bool:
    """Whether the last marked answer is the gold one letter by letter, spaces around it aside."""
    from vapo.tasks.verifiers.answers import last_answer

    found = last_answer(response)
    return found is not None and found.strip() == str(answer).strip()


def _as_trl(prompt: Prompt, response: str) -> dict[str, Any]:
    """The keyword arguments TRL gives a reward function, for a batch of one."""
    asked = prompt.columns.get("prompt", prompt.text)  # TRL goes by the column; we may have made messages of it
    chat = not isinstance(asked, str)
    return {
        "answer": [prompt.answer],
        **{key: [value] for key, value in prompt.columns.items()},  # a column of that name is what TRL would give
        "prompts": [list(asked) if chat else asked],
        "completions": [[{"role": "assistant", "content": response}] if chat else response],
    }


def import_function(name: str, setting: str) -> Callable[..., Any]:
    """The function `package.module:function` or `path/to/file.py:function`; ConfigError, naming the setting."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not attribute:
        raise ConfigError(
            f"{setting}: {name!r} is not known here, not an installed plug-in, and not like package.module:function or "
            "path/to/file.py:function. Check the name."
        )
    try:
        module = (
            _from_file(module_name, setting) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{setting} {name}: there is no module {error.name!r}. Run from the folder it lies in, install it, or "
            "give the file: path/to/file.py:function."
        ) from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ConfigError(f"{setting} {name}: {module_name} has no function {attribute!r}. Check the name.")
    return function


def _from_file(name: str, setting: str) -> Any:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{setting}: there is no file {path}. Check the path; it is taken from where vapo runs.")
    spec = importlib.util.spec_from_file_location(f"vapo_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"vapo_user_{path.stem}"] = module
    spec.loader.exec_module(module)
    return module
