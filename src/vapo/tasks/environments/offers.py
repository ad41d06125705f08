"""What a user gives to play with: an environment that takes turns, an environment whose methods are tools, or tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vapo.errors import ConfigError
from vapo.tasks.verifiers.functions import import_function

Form = Literal["auto", "tools"]
RESERVED = ("reset", "get_reward", "close")
"""Methods of an environment that the model is not offered."""


@dataclass(frozen=True)
class Offer:
    """`factory` makes an environment, `functions` are tools beside its methods. `takes_turns` says that the environment
    has `step(response)`; else its public methods are tools, as in TRL's `environment_factory`."""

    factory: Callable[..., Any] | None
    functions: tuple[Callable[..., Any], ...] = ()
    takes_turns: bool = False
    methods: tuple[Callable[..., Any], ...] = ()
    """Its public methods that are tools, not bound to an instance."""
    rewards: bool = False
    """Whether the environment has `get_reward()`."""


def load_offer(
    environment: str | None,
    tools: Sequence[str] = (),
    form: Form = "auto",
    arguments: Mapping[str, Any] | None = None,
) -> Offer:
    """Import what the names stand for. Call it in a worker process only. Raises ConfigError.

    With `arguments` the environment's name is that of a function which makes the factory of them.
    """
    factory = None if environment is None else import_function(environment, "task.environment")
    if factory is not None and arguments is not None:
        factory = factory(**arguments)
    return offer_of(factory, [import_function(name, "tools") for name in tools], form)


def offer_of(factory: Callable[..., Any] | None, functions: Sequence[Callable[..., Any]], form: Form = "auto") -> Offer:
    """The offer of these objects. A factory that needs no arguments is tried once.

    Raises ConfigError for an environment without `reset`, without anything to do, or with turns and tools beside them.
    """
    if factory is None:
        return Offer(None, tuple(functions))
    name = getattr(factory, "__qualname__", type(factory).__name__)
    if form == "auto" and not inspect.isclass(factory) and _needs_arguments(factory):
        return Offer(factory, takes_turns=True)
    kind = factory if inspect.isclass(factory) else type(_tried(factory, name))
    if not callable(getattr(kind, "reset", None)):
        raise ConfigError(
            f"The environment {name} has no reset(). It begins an episode: add it, returning a text or None."
        )
    step = getattr(kind, "step", None)
    rewards = callable(getattr(kind, "get_reward", None))
    # in TRL every public method is a tool; ours is told by the name of its argument
    if callable(step) and (form == "auto" or "response" in inspect.signature(step).parameters):
        if functions:
            raise ConfigError(
                f"The environment {name} takes turns by step(response), and reads calls of tools itself. Leave out "
                "tools, or make them its methods and drop step."
            )
        return Offer(factory, takes_turns=True, rewards=rewards)
    methods = tuple(tool_methods(kind).values())
    if not methods and not functions:
        raise ConfigError(f"The environment {name} has neither step(response) nor other public methods to be tools.")
    return Offer(factory, tuple(functions), methods=methods, rewards=rewards)


def described(offer: Offer) -> list[dict[str, Any]]:
    """JSON schemas of the tools, from their type hints and docstrings (transformers' `get_json_schema`).

    Raises ConfigError for a tool that cannot be described so.
    """
    return [_schema(tool) for tool in (*offer.functions, *offer.methods)]


def tool_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods that are offered to the model, by name."""
    found = inspect.getmembers(kind, predicate=inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_") and name not in RESERVED}


def named_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the function takes. Raises TypeError for one that it needs and that is not there."""
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {p.name: p for p in parameters if p.kind in kinds}
    missing = [name for name, p in named.items() if p.default is p.empty and name not in values]
    if missing:
        raise TypeError(f"it asks for {missing[0]!r}; there are: {', '.join(sorted(values))}")
    takes_rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return dict(values) if takes_rest else {key: value for key, value in values.items() if key in named}


def _needs_arguments(factory: Callable[..., Any]) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in kinds for p in inspect.signature(factory).parameters.values())


def _tried(factory: Callable[..., Any], name: str) -> Any:
    try:
        return factory()
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"The environment {name} cannot be made: {type(error).__name__}: {error}. Fix it.") from error


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        schema = get_json_schema(function)
    except Exception as error:  # it reads signature, type hints and docstring of the user's function
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The tool {getattr(function, '__name__', function)!r} cannot be described to the model: {reason} "
            "Give it type hints and a docstring with an Args section."
        ) from error
    schema["function"]["parameters"].get("properties", {}).pop("self", None)
    return schema
