"""Finds verifiers by name: built-in verifiers, entry points, functions of the user and TRL reward functions."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, SupportsFloat

from vapo.errors import ConfigError, UnguardedError, VapoError, counted
from vapo.types import Prompt, Verdict, Verifier

GROUP = "vapo.verifiers"
FACTORIES = {
    "math": "vapo.tasks.verifiers.maths:make_verifier",
    "reasoning-gym": "vapo.tasks.gym:make_verifier",
}
EXACT = "vapo.tasks.verifiers.functions:judge_exact"
RIGHT_AT = 0.99
"""The lowest score that counts as right."""

MEMORY_LIMIT = "the limit is task.verifier_memory_mb={mb}; raise it if the verifier needs more"


def load_verifier(name: str, *, right_at: float = RIGHT_AT, **options: Any) -> Verifier:
    """Import and return the verifier of that name. Call it in a worker process only.

    `name` is `math`, `reasoning-gym`, `exact`, an entry point of the group `vapo.verifiers`,
    `package.module:function` or `path/to/file.py:function`. The function's parameters are any of `prompt` (a
    `vapo.types.Prompt`), `response`, `answer` and the columns of the data set; or two positional ones, prompt and
    response; or those of a TRL reward function (see `RewardFunction`) or of verl's `compute_score` (`data_source`,
    `solution_str`, `ground_truth`, `extra_info`). It returns a `Verdict`, a bool, a score, or a dict with its `score`;
    a score is right if it is at least `right_at`; None, nan and infinity give an invalid verdict.

    Raises ConfigError if there is no such function.
    """
    if name in FACTORIES:
        return import_function(FACTORIES[name], "task.verifier")(**options)
    return adapted(import_function(_named_functions().get(name, name), "task.verifier"), right_at)


def check_verifier(name: str) -> None:
    """Raise ConfigError if there is no file or module for the verifier of that name. Imports nothing."""
    if name not in FACTORIES:
        check_function(_named_functions().get(name, name), "task.verifier")


def _named_functions() -> dict[str, str]:
    """The functions of the named verifiers: `exact`, and those of installed packages."""
    return {"exact": EXACT, **{point.name: point.value for point in entry_points(group=GROUP)}}


def name_of(function: Callable[..., Any]) -> str:
    """The name `path/to/file.py:function` by which a worker process imports this function.

    Raises ConfigError for a function that cannot be imported: a lambda, a method, a function inside another one.
    """
    file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    if file is None or not Path(file).exists() or not function.__qualname__.isidentifier():
        raise ConfigError(
            f"The verifier {getattr(function, '__qualname__', function)!r} must be a plain function at the top of a "
            ".py file: worker processes import it from that file. Move it there."
        )
    return f"{Path(file).resolve()}:{function.__qualname__}"


class OneLoop:
    """Waits for what async functions give, in one event loop for all calls.

    Objects that the user's code keeps between calls, such as a client or a lock, may be bound to their loop. The loop
    is made when it is needed, and closed by `close` or with this object.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def awaited(self, result: Any) -> Any:
        """The result, awaited if it is awaitable."""
        if not isinstance(result, Awaitable):
            return result
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            weakref.finalize(self, _close_idle, self._loop)
        return self._loop.run_until_complete(_awaited(result))

    def close(self) -> None:
        """Cancel what still runs in the loop, and close it."""
        if self._loop is None:
            return
        try:
            if tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            self._loop = None


def _close_idle(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop, unless a thread that was left behind still runs in it."""
    if not loop.is_running():
        loop.close()


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


TRL_PARAMETERS = ("prompts", "completions", "completion_ids")
"""A function with one of these parameters is called as TRL calls reward functions."""


def adapted(function: Callable[..., Any], right_at: float = RIGHT_AT) -> Verifier:
    """A verifier that calls the function; `load_verifier` lists its possible signatures and results."""
    parameters = inspect.signature(function).parameters
    if any(name in parameters for name in TRL_PARAMETERS):
        return RewardFunction(function, right_at)
    verl = "solution_str" in parameters
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.name in named}
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    # positional only if the first one is clearly the prompt: a function (output, gold) would get the prompt as output
    first = positional[0] if len(positional) == 2 and "response" not in parameters else None
    unnamed = first is not None and (first.kind is first.POSITIONAL_ONLY or first.name in ("prompt", "p"))
    loop = OneLoop()

    def verify(prompt: Prompt, response: str, /) -> Verdict:
        if unnamed:
            return to_verdict(loop.awaited(function(prompt, response)), right_at)
        values = {**prompt.columns, "prompt": prompt, "response": response, "answer": prompt.answer}
        if verl:
            values = {"extra_info": None, **values, "solution_str": response, "ground_truth": prompt.answer}
        if missing := sorted(needed - values.keys()):
            return Verdict("invalid", f"the verifier asks for {missing[0]!r}; there are: {', '.join(sorted(values))}")
        arguments = values if takes_rest else {key: value for key, value in values.items() if key in parameters}
        return to_verdict(loop.awaited(function(**arguments)), right_at)

    return verify


def to_verdict(result: Any, right_at: float = RIGHT_AT) -> Verdict:
    """The verdict for the result of a verifier; see `load_verifier`."""
    if isinstance(result, list | tuple) and len(result) == 1:
        result = result[0]
    if isinstance(result, dict) and "score" in result:  # as verl's functions return it
        result = result["score"]
    if isinstance(result, Verdict):
        return result
    if result is None:
        return Verdict("invalid", "the verifier gave None")
    if not isinstance(result, SupportsFloat):
        return Verdict("invalid", f"the verifier gave a {type(result).__name__}, not a verdict, a bool or a score")
    return verdict_of_score(float(result), right_at)


def verdict_of_score(score: float, right_at: float = RIGHT_AT) -> Verdict:
    """Right if the score is at least `right_at`, else wrong; invalid for nan and infinity."""
    if not math.isfinite(score):
        return Verdict("invalid", f"the verifier gave {score}, not a finite score")
    if score >= right_at:
        return Verdict("right", score=score)
    return Verdict("wrong", f"graded score {score:g}" if score else "score 0", score=score)


def judge_exact(response: str, answer: Any) -> Verdict:
    """The verdict of `verify_exact`, with the reason if the response is wrong."""
    from vapo.tasks.verifiers.answers import last_answer

    if verify_exact(response, answer):
        return Verdict("right")
    if last_answer(response) is None:
        return Verdict("wrong", "no marked answer", "no_answer")
    return Verdict("wrong", "another answer", "wrong_answer")


def verify_exact(response: str, answer: Any) -> bool:
    """Whether the last marked answer equals the gold answer character by character.

    Spaces and markup around both do not count, nor does a full stop at the end: `last_answer` leaves them out.
    """
    from vapo.tasks.verifiers.answers import last_answer, without_markup

    found, gold = last_answer(response), str(answer).strip()
    return found is not None and found.strip() in (gold, without_markup(gold) or gold)


class RewardFunction:
    """Wraps a TRL reward function. It judges all responses to a prompt in one call, because it may compare them.

    The function gets the keyword arguments of TRL 1.16, or those of them that it names: `prompts`, `completions`,
    `completion_ids` (stop token included) and the columns of the row, each once per response; and `trainer_state`,
    which only has `global_step`. It may call `log_extra` and `log_metric`, which drop their arguments.
    """

    def __init__(self, function: Callable[..., Any], right_at: float = RIGHT_AT) -> None:
        self.function, self.right_at = function, right_at
        self._loop = OneLoop()
        parameters = inspect.signature(function).parameters.values()
        self._takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._named, self._needed = {p.name for p in named}, {p.name for p in named if p.default is p.empty}

    @property
    def needs_tokens(self) -> bool:
        """Whether the function requires `completion_ids`."""
        return "completion_ids" in self._needed

    def __call__(self, prompt: Prompt, response: str, /) -> Verdict:
        """The verdict on one response, as a group of one."""
        return self.together(prompt, [response])[0]

    def together(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        token_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
    ) -> list[Verdict]:
        """Verdicts on the responses to one prompt, in order. Raises what the function raises.

        `token_ids` are those of the responses, `step` is the trainer's step.
        """
        values = _as_trl(prompt, responses, token_ids, step)
        if missing := sorted(self._needed - values.keys()):
            reason = f"the verifier asks for {missing[0]!r}; there are: {', '.join(sorted(values))}"
            return [Verdict("invalid", reason)] * len(responses)
        arguments = values if self._takes_rest else {key: value for key, value in values.items() if key in self._named}
        result = self._loop.awaited(self.function(**arguments))
        rewards = list(result) if isinstance(result, Iterable) and not isinstance(result, str | dict) else None
        if rewards is None or len(rewards) != len(responses):
            gave = f"a {type(result).__name__}" if rewards is None else counted(len(rewards), "reward")
            return [
                Verdict("invalid", f"the reward function gave {gave} for {counted(len(responses), 'completion')}")
            ] * len(responses)
        return [to_verdict(self._loop.awaited(reward), self.right_at) for reward in rewards]


def _as_trl(
    prompt: Prompt, responses: Sequence[str], token_ids: Sequence[Sequence[int]] | None, step: int
) -> dict[str, Any]:
    """The keyword arguments TRL gives a reward function for a batch of responses to one prompt."""
    text = prompt.columns.get("prompt", prompt.text)  # TRL passes the column, which may not be messages as `text` is
    chat = not isinstance(text, str)
    columns = {"answer": prompt.answer, **prompt.columns}  # a column `answer` goes first, as in TRL
    columns = {key: value for key, value in columns.items() if key not in ("prompt", "completion", "completion_ids")}
    count = len(responses)
    return {
        **{key: [value] * count for key, value in columns.items()},
        "prompts": [list(text) if chat else text for _ in range(count)],
        "completions": [[{"role": "assistant", "content": response}] if chat else response for response in responses],
        **({} if token_ids is None else {"completion_ids": [list(ids) for ids in token_ids]}),
        "trainer_state": SimpleNamespace(global_step=step),
        "log_extra": _drop,
        "log_metric": _drop,
    }


def _drop(name: str, value: Any) -> None:
    """Drop a value that a reward function logs: its process only sends verdicts."""


def check_function(name: str, setting: str) -> tuple[str, str]:
    """(module or file, function) of the name that `import_function` takes. Imports nothing.

    Raises ConfigError, with the name of the setting, for a name of another form, a missing file, or a package that is
    not installed.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon or not attribute:
        raise ConfigError(
            f"{setting}: {name!r} is not known here: it is not built in, not an installed plug-in, and not of the form "
            "package.module:function or path/to/file.py:function. Check the name."
        )
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError(
                f"{setting}: there is no file {module}. Check the path, which is relative to the working directory."
            )
    elif not _is_installed(package := module.partition(".")[0]):
        raise _no_module(setting, name, package, named_by_user=True)
    return module, attribute


def _is_installed(package: str) -> bool:
    """Whether Python finds the package, or a module of that name in the current folder."""
    with _importable(Path.cwd(), first=False):
        try:
            return package in sys.modules or importlib.util.find_spec(package) is not None
        except (ImportError, ValueError):
            return False


def file_of_module(name: str, folder: Path) -> Path | None:
    """The absolute path of a module outside of packages that Python finds in this folder only; None for any other.

    Only such a module is found or not by where the process starts, and can be imported by its file alone.
    """
    file = folder.resolve() / f"{name}.py"
    if not name.isidentifier() or not file.is_file():
        return None
    with _importable(folder, first=False):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
    found = spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file
    return file if found else None


def _no_module(setting: str, name: str, missing: str | None, *, named_by_user: bool) -> ConfigError:
    """The error for a missing module: the one that the user named, or one that it imports."""
    advice = (
        "Run from the folder that holds it, install it, or give the file: path/to/file.py:function."
        if named_by_user
        else f"{name.rpartition(':')[0]} imports it: install it, or put it beside that file."
    )
    return ConfigError(f"{setting} {name}: there is no module {missing!r}. {advice}")


def import_function(name: str, setting: str) -> Callable[..., Any]:
    """Import the function `package.module:function` or `path/to/file.py:function`.

    Raises ConfigError, with the name of the setting, if that fails.
    """
    module_name, attribute = check_function(name, setting)
    try:
        with _importing(name):
            if module_name.endswith(".py"):
                module = _from_file(module_name)
            else:
                with _importable(Path.cwd(), first=False):
                    module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        named_by_user = error.name is not None and (module_name + ".").startswith(error.name + ".")
        raise _no_module(setting, name, error.name, named_by_user=named_by_user) from error
    except VapoError:
        raise
    except SystemExit as error:
        raise UnguardedError(
            f"{setting} {name}: {module_name} cannot be imported: SystemExit: {error}. It ends the process "
            f"{guard_advice(name)}"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{setting} {name}: {module_name} cannot be imported: {type(error).__name__}: {error}. Fix the file."
        ) from error
    function: Any = module
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise ConfigError(f"{setting} {name}: {module_name} has no function {attribute!r}. Check the name.")
    return function


def _from_file(name: str) -> Any:
    path = Path(name)
    spec = importlib.util.spec_from_file_location(f"vapo_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"vapo_user_{path.stem}"] = module
    with _importable(path.resolve().parent, first=True):
        spec.loader.exec_module(module)
    return module


_being_imported: list[str] = []
"""Names of the functions whose modules are being imported now, innermost last."""
_IMPORTING = "VAPO_IMPORTING"
"""The environment variable with the innermost of them, which tells the processes that such a module starts."""


@contextlib.contextmanager
def _importing(function: str) -> Iterator[None]:
    before = os.environ.get(_IMPORTING)
    _being_imported.append(function)
    os.environ[_IMPORTING] = function
    try:
        yield
    finally:
        _being_imported.pop()
        if before is None:
            os.environ.pop(_IMPORTING, None)
        else:
            os.environ[_IMPORTING] = before


def refuse_while_importing(call: str) -> None:
    """Raise UnguardedError if a module calls `call`, or starts this process, while it is imported for a function.

    Otherwise each worker process would start a run, whose workers would start runs, and so on.
    """
    if not _being_imported:
        if function := os.environ.get(_IMPORTING):
            raise UnguardedError(f"{function.rpartition(':')[0]} starts {call} {guard_advice(function)}")
        return
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    raise UnguardedError(
        f"{frame.f_code.co_filename}, line {frame.f_lineno}, starts {call} {guard_advice(_being_imported[-1])}"
    )


def guard_advice(function: str) -> str:
    """The end of an error message about a file that runs code when it is imported: the cause and the fix."""
    return (
        f"when the file is imported, and worker processes import it to find {function}. "
        'Put the code of the script under `if __name__ == "__main__":`.'
    )


@contextlib.contextmanager
def _importable(folder: Path, *, first: bool) -> Iterator[None]:
    """Make the modules in the folder importable, in the block before all others if `first`, and later after them.

    They stay importable for imports inside functions, and must not replace modules that the trainer imports.
    """
    path = str(folder)
    if first:
        sys.path.insert(0, path)
    elif path not in sys.path:
        sys.path.append(path)
    try:
        yield
    finally:
        if first:
            with contextlib.suppress(ValueError):
                sys.path.remove(path)
            if path not in sys.path:
                sys.path.append(path)
