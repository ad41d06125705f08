"""Splits answers in tidy notation into their parts: lists, sets, tuples, unions and matrices."""

from __future__ import annotations

import re

NAME = re.compile(
    r"(?!\\(?:pi|infty)(?![a-z]))\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?: ?\([^()=]*\))?|\([A-Za-z](?:, ?[A-Za-z])+\)"
)
"""The left side of an equation that states a value: x, x_1, f(2), (x, y)."""
_LETTER = re.compile(r"[A-Za-z](?:_\{?\d\}?)?")
_MATRIX = re.compile(r"[(\[]? ?\\begin\{([pb]?matrix)\}(.*?)\\end\{\1\} ?[)\]]?")


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between the separators that are outside all brackets and braces."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == "\\" and at + 1 < len(text) and not text.startswith(separator, at):
            depth += (text[at + 1] == "{") - (text[at + 1] == "}")
            at += 2
            continue
        if depth == 0 and text.startswith(separator, at):
            parts.append(text[start:at].strip())
            at = start = at + len(separator)
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return [*parts, text[start:].strip()]


def union(text: str) -> list[str] | None:
    """The members of a union of sets, None for any other text."""
    parts = split(text, "\\cup")
    return parts if len(parts) > 1 else None


def matrix(text: str) -> list[str] | None:
    """The number of rows of a matrix, its items, and the number of items in each row; None for any other text."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row.split("&") for row in match[2].split("\\\\") if row.strip()]
    return [f"{len(rows)}", *(item.strip() for row in rows for item in row), *(str(len(row)) for row in rows)]


def column(text: str) -> list[str] | None:
    """The items of a matrix of one column, None for any other text."""
    parts = matrix(text)
    return parts[1 : 1 + int(parts[0])] if parts and len(parts) == 1 + 2 * int(parts[0]) > 3 else None


def coordinates(text: str) -> list[str] | None:
    """The values of `x = 1, y = 2`, sorted by name; None unless all names are different and of one letter."""
    items = [part for item in split(text, ",") for piece in split(item, ";") for part in split(piece, " and ")]
    sides = [split(item, "=") for item in items]
    if len(sides) < 2 or not all(len(side) == 2 and _LETTER.fullmatch(side[0]) for side in sides):
        return None
    values = {side[0]: side[1] for side in sides}
    return [values[name] for name in sorted(values)] if len(values) == len(sides) else None


def spread(text: str) -> str:
    """The values by name of `(p, q) = (2, 3)`: `p=2, q=3`; any other text unchanged.

    >>> spread("(p, q) = (2, 3)"), spread("(p, q) = (2, 3), (3, 2)")
    ('p=2, q=3', '(p, q) = (2, 3), (3, 2)')
    """
    names, values = (bracket(side) for side in sides) if len(sides := split(text, "=")) == 2 else (None, None)
    if not names or not values or len(names) != len(values) or not all(map(_LETTER.fullmatch, names[2:])):
        return text
    return ", ".join(f"{name}={value}" for name, value in zip(names[2:], values[2:], strict=True))


def are_roots(text: str) -> bool:
    """Whether values by name are those of x_1, x_2 and so on, which may stand in any order.

    >>> are_roots("x_1=2, x_2=4"), are_roots("a_1=2, a_2=4"), are_roots("x=2, y=4")
    (True, False, False)
    """
    names = [name for item in split(text, ",") for name in re.findall(r"(\\?\w+)\s*=", re.sub("[{}]", "", item))]
    return bool(names) and all(name.startswith("x_") for name in names)


def bracket(text: str) -> list[str] | None:
    """The brackets ("0" is round, "1" square) and the items of a tuple or an interval, None for any other text."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or not _encloses(text):
        return None
    found = [items for separator in (",", ";") if len(items := split(text[1:-1], separator)) > 1]
    if len(found) != 1:  # (1,5; 2) may be 1.5 and 2
        return None
    return [{"(": "0", "[": "1"}[text[0]], {")": "0", "]": "1"}[text[-1]], *found[0]]


def _encloses(text: str) -> bool:
    """Whether the bracket at the start of the text closes at its end."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def listing(text: str) -> list[str] | None:
    """The items of a set or a bare list, or the two values of a plus-minus; None for a single value."""
    braced = text.startswith("\\{") and text.endswith("\\}")
    if braced:
        text = text[2:-2].strip()
    items = [text]
    # 1,2; 3,4 has two items
    for separator in (";" if len(split(text, ";")) > 1 else ",", " or ", " and "):
        items = [part for item in items for part in split(item, separator)]
    items = [signed for item in items if item for signed in _both_signs(item)]
    if braced:
        items = list(dict.fromkeys(items))  # a set has no duplicates
    return items if braced or len(items) > 1 else None


def _both_signs(item: str) -> list[str]:
    """The two values of `a\\pm b`, or the item itself."""
    if "\\pm" not in item or len(items := item.split("\\pm")) != 2:
        return [item]
    return [f"{items[0]}+{items[1]}" if items[0].strip() else items[1], f"{items[0]}-{items[1]}"]


def without_name(items: list[str]) -> list[str]:
    """The values 1 and 2 of the items `x=1, x=2`; the items unchanged if they are not equations for one name."""
    sides = [split(item, "=") for item in items]
    names = {side[0] for side in sides if len(side) == 2 and NAME.fullmatch(side[0])}
    return [side[1] for side in sides] if len(names) == 1 and all(len(side) == 2 for side in sides) else items
