"""Reads whole numbers in words, in another base, as a residue and as a time of day.

Each function reads one of these from a tidy answer and returns None for any other text.
"""

from __future__ import annotations

import re

_ONES = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_WORDS = {**{word: n for n, word in enumerate(_ONES)}, **{word: 10 * n for n, word in enumerate(_TENS, 2)}}
_NUMERAL = re.compile(r"\(?([0-9A-Za-z]*[0-9][0-9A-Za-z]*)\)? ?_ ?\{? ?\(?(\d{1,2}|[a-z]+)\)? ?\}?")
_RESIDUE = re.compile(r"(.*?[^ (\\]) ?\(? ?\\?[pb]?mod ?\{? ?(\d{1,30}) ?\}? ?\)?")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?: ?([ap])\.? ?m\.?)?", re.IGNORECASE)
_DAY = 24 * 60


def spelled(text: str) -> int | None:
    """The value of a number in words between -1000 and 1000.

    >>> spelled("seven"), spelled("Forty-two"), spelled("one hundred and five"), spelled("minus six"), spelled("some")
    (7, 42, 105, -6, None)
    """
    if match := re.match(r"(?:minus|negative) ", text, re.IGNORECASE):
        value = spelled(text[match.end() :])
        return -value if value is not None and value > 0 else None
    words = re.findall(r"[a-z]+", text.lower())
    if len(words) > 5 or not re.fullmatch(r"[A-Za-z -]+", text):
        return None
    if "hundred" in words:
        at = words.index("hundred")
        hundreds, rest = words[:at], [word for word in words[at + 1 :] if word != "and"]
        below = _below_hundred(rest) if rest else 0
        ones = _below_hundred(hundreds)
        return None if ones is None or below is None or not 0 < ones < 10 else 100 * ones + below
    return _below_hundred(words)


def _below_hundred(words: list[str]) -> int | None:
    """The value of one or two number words below 100, None for other words."""
    values = [_WORDS.get(word, -1) for word in words]
    if len(values) == 1 and values[0] >= 0:
        return values[0]
    return sum(values) if len(values) == 2 and values[0] >= 20 and 0 < values[1] < 10 else None


def numeral(text: str) -> tuple[str, int] | None:
    """Digits and base of a numeral such as 1011_2, (1011)_2 or 2a_{16}; None if a digit does not exist in that base.

    >>> numeral("(2a)_{16}"), numeral("324_{five}"), numeral("102_2"), numeral("x_5")
    (('2A', 16), ('324', 5), None, None)
    """
    match = _NUMERAL.fullmatch(text)
    base = (int(match[2]) if match[2].isdigit() else spelled(match[2])) if match else None
    if match is None or base is None or not 2 <= base <= 36:
        return None
    digits = match[1].upper()
    return (digits, base) if all(int(digit, 36) < base for digit in digits) else None


def residue(text: str) -> tuple[str, int] | None:
    """Value and modulus of `7 \\\\pmod{10}`, None for any other text.

    The value must be below the modulus: then it is both the residue and the remainder.

    >>> residue("7 \\\\pmod{10}"), residue("17 \\\\mod 10"), residue("7")
    (('7', 10), None, None)
    """
    match = _RESIDUE.fullmatch(text)
    if match is None:
        return None
    value = match[1].rpartition("\\equiv")[2].strip()
    return (value, int(match[2])) if re.fullmatch(r"\d{1,30}", value) and int(value) < int(match[2]) else None


def minutes(text: str) -> tuple[set[int], bool] | None:
    """The minutes after midnight that a time of day may mean, and whether it means one of them only.

    A time without a.m. or p.m., such as 8:00, means two of them.

    >>> minutes("8 p.m."), minutes("12:30 AM"), sorted(minutes("8:00")[0]), minutes("25:00"), minutes("8")
    (({1200}, True), ({30}, True), [480, 1200], None, None)
    """
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    hour, minute = int(match[1]), int(match[2] or 0)
    if minute > 59 or hour > (12 if match[3] else 23) or (match[3] and hour == 0):
        return None
    if match[3]:
        return {(hour % 12 + 12 * (match[3].lower() == "p")) * 60 + minute}, True
    at = hour * 60 + minute
    return ({at} if hour > 12 or hour == 0 else {at % _DAY, (at + _DAY // 2) % _DAY}), hour > 12 or hour == 0
