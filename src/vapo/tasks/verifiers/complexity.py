"""Upper bounds on the cost of evaluating an answer. They are rough, and far above any real answer."""

from __future__ import annotations

import re

from vapo.tasks.verifiers.notation import COMMANDS, FUNCTIONS

MAX_EXPONENT = 100_000
"""Largest product of all exponents in an answer: about the largest number of digits of a power."""
MAX_SYMBOLIC_EXPONENT = 200
"""The same for an answer with variables."""
MAX_GROUP_EXPONENT = 24
"""The same for powers of a group with variables, such as (x+1)^24: expanding (a+b+c)^30 takes seconds."""
MAX_TOWER = 3
MAX_FACTORIAL = 500
MAX_DIGITS = 60
MAX_DEPTH = 12
MAX_ROOTS = 8

_COMMAND = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-df-hj-z]")  # e and i are numbers
_NUMERIC_POWER = re.compile(r"[\d)}]\s*(?:\^|\*\*)")


def too_complex(text: str) -> str:
    """The reason not to evaluate a tidy answer, "" if it may be evaluated.

    Refuses answers that may take too long to evaluate and text that is not mathematics. The bounds on the size of
    the numbers are rough on purpose, because real answers are far below them.
    """
    if not text.isascii():
        return "characters that are not mathematics"
    if not text.isprintable():
        return "control characters"
    if "__" in text or any(mark in text for mark in '"`@#'):
        return "not mathematical notation"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"brackets nested {deepest} deep"
    if unknown := next((c for c in re.findall(r"\\([A-Za-z]+)", text) if c not in COMMANDS), None):
        return f"\\{unknown[:20]} in an answer"
    if any(len(run) > MAX_DIGITS for run in re.findall(r"\d+", text)):
        return f"a number of more than {MAX_DIGITS} digits"
    if text.count("\\sqrt") > MAX_ROOTS:
        return "too many roots"
    if re.search(r"\d\s*[eE]\s*[-+]?\d{4}", text):
        return "a huge power of ten"
    return _too_large(text)


def _too_large(text: str) -> str:
    """The first operation whose result may be too large to compute, "" if there is none."""
    if "!" in text:
        literal = re.findall(r"(\d*)\s*!", text)
        if re.search(r"[!)}]\s*!", text) or any(len(n) > 4 or int(n or 0) > MAX_FACTORIAL for n in literal):
            return "a huge factorial"
    if re.search(r"\\[Gg]amma\s*\(", text):
        return "a gamma function"
    for match in re.finditer(r"\\binom", text):
        inside = text[match.end() : match.end() + 20]
        if re.search(r"\^|\\binom|!|\d{4}", inside):
            return "a huge binomial"
    symbolic = _VARIABLE.search(_COMMAND.sub(" ", text))
    size = group_size = 1
    for base, exponent in _powers(text):
        # refuses 9^{9^9} and accepts e^{x^2}; the loop also visits every power inside the exponent
        if "!" in exponent or (_NUMERIC_POWER.search(exponent) and not _VARIABLE.search(_COMMAND.sub(" ", exponent))):
            return "a power in an exponent"
        if exponent.count("^") + exponent.count("**") >= MAX_TOWER:
            return "a tower of powers"
        literals = re.findall(r"\d+", exponent)
        if any(len(n) > 6 for n in literals):
            return "a huge exponent"
        for n in literals:
            size *= max(int(n), 1)
            group_size *= max(int(n), 1) if base and base in ")}]" else 1
    if size > (MAX_SYMBOLIC_EXPONENT if symbolic else MAX_EXPONENT):
        return "a huge exponent"
    return "a huge power of a group" if symbolic and group_size > MAX_GROUP_EXPONENT else ""


def _powers(text: str) -> list[tuple[str, str]]:
    """(base, exponent) of each `^` or `**`.

    The base is the character before the sign, or ")" after the name of a function. The exponent is a group in braces
    or parentheses, or a run without operators.
    """
    found = []
    for match in re.finditer(r"\^|\*\*", text):
        before = text[: match.start()].rstrip()
        function = re.search(r"\\([A-Za-z]+)$", before)
        base = ")" if function and function[1] in FUNCTIONS else before[-1:]
        at = match.end()
        while at < len(text) and text[at] == " ":
            at += 1
        if at < len(text) and text[at] in "{(":
            depth, end = 0, at
            while end < len(text):
                depth += (text[end] in "{(") - (text[end] in "})")
                end += 1
                if depth == 0:
                    break
            found.append((base, text[at:end]))
        else:
            run = re.match(r"[-+]?(?:\\?[A-Za-z]+|\d+)?!?(?:\s*(?:\^|\*\*).*)?", text[at:])
            found.append((base, run[0] if run else ""))
    return found
