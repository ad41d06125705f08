"""Settings as YAML text, each line with a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml


def yaml_lines(values: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """The lines of a settings file; `comments` are looked up by dotted key."""
    indent = "  " * prefix.count(".")
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from yaml_lines(value, comments, f"{prefix}{key}.")
        else:
            style = '"' if isinstance(value, str) and "\n" in value else None  # one line for a text of many, too
            text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**6)
            text = text.strip().removesuffix("...").strip()
            comment = comments.get(f"{prefix}{key}")
            yield f"{indent}{key}: {text}".ljust(48) + (f"  # {comment}" if comment else "")
