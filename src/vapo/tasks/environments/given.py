"""Environments and tools that are given as objects of this process."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vapo.tasks.environments.channels import EnvironmentLimits, EnvironmentServer, ThreadServer
from vapo.tasks.environments.offers import offer_of
from vapo.tasks.environments.players import Players


def players_of(
    factory: Callable[..., Any] | None, tools: Sequence[Callable[..., Any]], limits: EnvironmentLimits
) -> Players:
    """Players of TRL's `environment_factory` and `tools`.

    They play in processes of their own where all of these objects can be imported by name; else in threads of this
    process, without a limit on memory. Raises ConfigError for objects that are no environment or no tools.
    """
    names = [importable_name(given) for given in ([] if factory is None else [factory]) + list(tools)]
    known = [name for name in names if name is not None]
    server: EnvironmentServer | ThreadServer
    if len(known) == len(names):
        environment = None if factory is None else known[0]
        server = EnvironmentServer(environment, known[len(known) - len(tools) :], form="tools", limits=limits)
    else:
        server = ThreadServer(offer_of(factory, tools, "tools"), limits=limits)
    return Players(server, stateless=factory is None)


def importable_name(given: Any) -> str | None:
    """The name by which another process imports a function or class; None if it cannot, or would run a whole script.

    A script is imported only if it says what belongs under `if __name__ == "__main__":`.
    """
    if not (inspect.isfunction(given) or inspect.isclass(given)) or not given.__qualname__.isidentifier():
        return None
    module = sys.modules.get(given.__module__)
    if module is None or getattr(module, given.__qualname__, None) is not given:
        return None
    if module.__name__ != "__main__" and "." in module.__name__:
        return f"{module.__name__}:{given.__qualname__}"  # it may import its neighbours
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py") or not Path(file).is_file():
        return None
    if module.__name__ == "__main__" and not has_guard(Path(file).read_text(encoding="utf-8")):
        return None
    return f"{Path(file).resolve()}:{given.__qualname__}"


def has_guard(source: str) -> bool:
    """Whether a file has `if __name__ == "__main__":` at its top level."""
    return any(
        isinstance(node, ast.If)
        and any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test))
        for node in ast.parse(source).body
    )
