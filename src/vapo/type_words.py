"""What a value should have been, in our own words, from the errors of pydantic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 60
"""Characters of a value that a message shows."""

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list, [a, b]",
    "tuple": "a list, [a, b]",
    "sequence": "a list, [a, b]",
    "dict": "a mapping, {name: value}",
    "mapping": "a mapping, {name: value}",
    "model": "settings of its own, {name: value}",
    "dataclass": "settings of its own, {name: value}",
}
"""By the first word of an error's type, such as `int_parsing`."""
_BOUNDS: dict[str, Callable[[Any], str]] = {
    "greater_than_equal": lambda context: f"a number that is at least {context['ge']}",
    "greater_than": lambda context: f"a number above {context['gt']}",
    "less_than_equal": lambda context: f"a number that is at most {context['le']}",
    "less_than": lambda context: f"a number below {context['lt']}",
    "literal_error": lambda context: f"one of {context['expected']}",
    "is_instance_of": lambda context: "a list, [a, b]" if "Sequence" in context["class"] else f"a {context['class']}",
    "too_short": lambda context: f"{context['min_length']} or more entries",
}
"""By an error's type, from its context."""


def expected(problems: Iterable[Any]) -> str:
    """What was wanted where one value has these problems, several where a union was tried: `text or a list, [a, b]`."""
    return " or ".join(dict.fromkeys(_expected(problem) for problem in problems))


def shown(value: Any) -> str:
    """A value for a message, cut at `LONGEST` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _expected(problem: Any) -> str:
    kind = problem["type"]
    if kind == "missing":
        return "a value, which is missing"
    if kind in _BOUNDS:
        return _BOUNDS[kind](problem["ctx"])
    return _KINDS.get(kind.partition("_")[0], "a value of another type")
