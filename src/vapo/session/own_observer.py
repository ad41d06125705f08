"""A user's observer by its name, for `vapo train --observer file.py:Class`."""

from __future__ import annotations

from typing import Any

from vapo.errors import ConfigError
from vapo.tasks.verifiers.functions import import_function
from vapo.trainer.observer import Observer

OPTION = "--observer"
METHODS = [name for name in vars(Observer) if not name.startswith("_")]


def own_observer(name: str) -> Observer:
    """The observer that `package.module:Class` or `path/to/file.py:Class` makes, called without arguments.

    Raises ConfigError for a name that leads to none.
    """
    make = import_function(name, OPTION)
    try:
        made: Any = make()
    except Exception as error:  # the class is the user's
        raise ConfigError(
            f"{OPTION} {name}: it cannot be made without arguments: {type(error).__name__}: {error}. Fix it."
        ) from error
    if missing := [method for method in METHODS if not callable(getattr(made, method, None))]:
        raise ConfigError(
            f"{OPTION} {name}: a {type(made).__name__} is no observer: it has no {missing[0]}(). Make it a subclass of "
            "vapo.Observer, which has all methods."
        )
    return made
