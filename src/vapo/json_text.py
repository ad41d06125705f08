"""Plain data: JSON as every file and pipe of the package has it, and dotted keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
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

    >>> list(flatten({"a": {"b": 1, "c": {}}, "d": [2]}))
    [('a.b', 1), ('a.c', {}), ('d', [2])]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
