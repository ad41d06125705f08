"""Writes sets of real numbers as intervals: x >= 2 is [2, infinity), R without 0 is a union of two intervals."""

from __future__ import annotations

import re
from itertools import pairwise

from vapo.tasks.verifiers.notation import number
from vapo.tasks.verifiers.parts import bracket, listing, split

_RELATION = re.compile(r"(<|>|\\(?:le|leq|ge|geq|lt|gt)(?![a-z]))")
_MIRRORED = {  # a < b is b > a
    "<": ">", ">": "<", "\\lt": "\\gt", "\\gt": "\\lt",
    "\\le": "\\ge", "\\ge": "\\le", "\\leq": "\\geq", "\\geq": "\\leq",
}  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z](?:_\{?\w\}?)?|\\(?!pi|infty)[a-z]+")
_REALS = re.compile(r"\\mathbb ?(?:\{ ?R ?\}|R)(?: ?(?:\\setminus|-|\\backslash) ?(\\\{.*\\\}))?")
_SET_BUILDER = re.compile(
    r"\\\{ ?([A-Za-z])(?: ?\\in ?\\mathbb ?\{? ?R ?\}?)? ?(?:\\mid|\\vert|:|\|) ?(.*)\\\}"
)  # {x | x > 2}
_NOT_EQUAL = re.compile(r"(.+?) ?\\(?:ne|neq)(?![a-z]) ?(.+)")
_OUTWARD_BRACKETS = re.compile(r"[\[\]][^\[\]()]*[,;][^\[\]()]*[\[\]]")


def region(text: str) -> tuple[str, str] | None:
    """The variable ("" if none is named) and the intervals of a tidy answer; None if it is not a set of real numbers.

    An inequality must have one variable, which must be alone on its side.

    >>> region("x \\\\ge 2"), region("0<x\\\\le 1"), region("x<-1 or x>1")
    (('x', '[2,\\\\infty)'), ('x', '(0,1]'), ('x', '(-\\\\infty,-1) \\\\cup (1,\\\\infty)'))
    >>> region("]-2,1["), region("\\\\mathbb{R}\\\\setminus\\\\{0\\\\}"), region("x+y<3")
    (('', '(-2,1)'), ('', '(-\\\\infty,0) \\\\cup (0,\\\\infty)'), None)
    """
    if match := _SET_BUILDER.fullmatch(text):
        found = region(match[2].strip())
        return found if found and found[0] == match[1] else None
    for separator in (" or ", "\\lor", "\\cup"):
        if len(parts := split(text, separator)) > 1:
            found = [region(part) for part in parts]
            regions = [one for one in found if one is not None]
            if len(regions) < len(parts) or len({name for name, _ in regions}) > 1:
                return None
            return regions[0][0], " \\cup ".join(one for _, one in regions)
    if match := _REALS.fullmatch(text):
        return _without("", listing(match[1]) or [] if match[1] else [])
    if match := _NOT_EQUAL.fullmatch(text):
        return _without(match[1], [match[2]]) if _VARIABLE.fullmatch(match[1]) else None
    if _OUTWARD_BRACKETS.fullmatch(text):
        text = {"[": "[", "]": "("}[text[0]] + text[1:-1] + {"]": "]", "[": ")"}[text[-1]]
    if (items := bracket(text)) is not None:
        return ("", text) if len(items) == 4 else None
    return _inequality(text)


def _without(name: str, points: list[str]) -> tuple[str, str] | None:
    """The real numbers without the given points; None if there are several and one of them is not a plain number."""
    values = {point: number(point) for point in points}
    if len(points) > 1 and None in values.values():
        return None
    inner = sorted(points, key=lambda point: values[point] or 0)
    edges = ["-\\infty", *inner, "\\infty"]
    return name, " \\cup ".join(f"({low},{high})" for low, high in pairwise(edges))


def _inequality(text: str) -> tuple[str, str] | None:
    """The interval of an inequality or of two joined by "and", None for any other text."""
    low, high, names = "(-\\infty", "\\infty)", set()
    for part in split(text, " and "):
        sides = [side.strip() for side in _RELATION.split(part)]
        if len(sides) == 3 and _VARIABLE.fullmatch(sides[2]) and not _VARIABLE.fullmatch(sides[0]):
            bounds = [(sides[0], sides[1], sides[2])]
        elif len(sides) == 3:
            bounds = [(sides[2], _MIRRORED[sides[1]], sides[0])]
        elif len(sides) == 5:
            bounds = [(sides[0], sides[1], sides[2]), (sides[4], _MIRRORED[sides[3]], sides[2])]
        else:
            return None
        for bound, relation, name in bounds:
            if not bound or not _VARIABLE.fullmatch(name) or _VARIABLE.fullmatch(bound):
                return None
            names.add(name)
            strict = relation in ("<", ">", "\\lt", "\\gt")
            if relation in ("<", "\\lt", "\\le", "\\leq"):
                low, already_bounded = ("(" if strict else "[") + bound, low != "(-\\infty"
            else:
                high, already_bounded = bound + (")" if strict else "]"), high != "\\infty)"
            if already_bounded:
                return None  # two bounds on the same side
    return (names.pop(), f"{low},{high}") if len(names) == 1 else None
