"""Plain data: JSON as every file and pipe of the package has it, and dotted keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def json_text(value: Any, **layout: Any) -> str:
    """The JSON of plain data, which any reader accepts: RFC 8259 has no NaN and no Infinity.

    `layout` is what json.dumps knows as indent, separators and ensure_ascii.

    >>> json_text({"low": float("nan"), "ends": (1.0, float("inf"))})
    '{"low": null, "ends": [1.0, null]}'
    """
    return json.dumps(null_for_nan(value), allow_nan=False, **layout)


def null_for_nan(value: Any) -> Any:
    """The same data with None for every number that is not finite, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf value) pairs of nested data, in order; an empty mapping is a leaf.

    A key that is no text is written as JSON writes it.

    >>> list(flatten({"a": {"b": 1, "c": {}}, "d": [2]}))
    [('a.b', 1), ('a.c', {}), ('d', [2])]
    """
    for path, value in leaves(values):
        yield prefix + dotted(path), value


def leaves(values: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What `flatten` gives, each with its keys one by one: a key of a user's own mapping may have dots.

    >>> list(leaves({"a": {"b.c": 1, 2: 3}}))
    [(('a', 'b.c'), 1), (('a', 2), 3)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from (((key, *path), leaf) for path, leaf in leaves(value))
        else:
            yield (key,), value


def dotted(path: Iterable[Any]) -> str:
    """Keys one by one as a dotted key; see `flatten`. Mappings whose keys have dots, or are numbers beside their texts,
    may give two leaves one dotted key: it is for looking up and for people, `leaves` for laying down."""
    return ".".join(key if isinstance(key, str) else json.dumps(key, default=str) for key in path)
