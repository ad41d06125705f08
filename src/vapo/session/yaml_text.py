"""Settings as YAML text, each line with a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from vapo.json_text import dotted


def yaml_lines(values: Mapping[Any, Any], comments: Mapping[str, str], above: tuple[Any, ...] = ()) -> Iterator[str]:
    """The lines of a settings file, `above` being the keys that the values are under; `comments` are looked up by
    dotted key."""
    indent = "  " * len(above)
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{yaml_line(key)}:"
            yield from yaml_lines(value, comments, (*above, key))
        else:
            comment = comments.get(dotted((*above, key)))
            yield f"{indent}{yaml_line(key)}: {yaml_line(value)}".ljust(48) + (f"  # {comment}" if comment else "")


def yaml_line(value: Any) -> str:
    """A key or a value as YAML on one line, quoted where YAML would read something else."""
    style = '"' if isinstance(value, str) and "\n" in value else None  # one line for a text of many, too
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**6)
    return text.strip().removesuffix("...").strip()
