"""Format numbers, durations and text for tables, the page and the terminal."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata

NOTHING = "–"


def figure(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits; a dash for None and nan.

    >>> figure(0.1234), figure(145.27), figure(0.0), figure(1e-6), figure(float("nan"))
    ('0.123', '145', '0', '1e-06', '–')
    """
    if value is None or math.isnan(value):
        return NOTHING
    if value == 0:
        return "0"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{max(0, digits - 1 - max(math.floor(math.log10(size)), -1))}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """`figure` with a plus sign before positive numbers."""
    text = figure(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def gap(value: float | None) -> str:
    """A difference of values with three decimals, so that those in a column line up; a dash for None and nan.

    >>> gap(0.00092), gap(-0.124), gap(None)
    ('+0.001', '-0.124', '–')
    """
    return NOTHING if value is None or math.isnan(value) else f"{value:+.3f}"


def percent(value: float | None) -> str:
    """A share as a percentage; a dash for None and nan.

    >>> percent(0.034), percent(0.5), percent(0.0)
    ('3.4 %', '50 %', '0 %')
    """
    if value is None or math.isnan(value):
        return NOTHING
    return f"{100 * value:.1f} %" if 0 < abs(value) < 0.0995 else f"{100 * value:.0f} %"


def short_count(value: float | None) -> str:
    """A large number with three digits and a unit letter.

    >>> short_count(950), short_count(41234), short_count(3.2e6)
    ('950', '41.2k', '3.20M')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{figure(value / size)}{letter}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds in hours, minutes and seconds.

    >>> duration(5.2), duration(200), duration(3723), duration(None)
    ('5.2s', '3m 20s', '1h 02m', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; empty if either end is None or nan.

    >>> interval(0.47, 0.553)
    '[0.470, 0.553]'
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{figure(low)}, {figure(high)}]"


def one_line(text: object) -> str:
    """Text on one line and without control codes, safe to print in a terminal.

    >>> one_line("a\\x1b[31mred\\nb")
    'a [31mred b'
    """
    safe = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(text))
    return " ".join(safe.split())


_COMMAND = re.compile(r"(?<=: )vapo [a-z-]+( \S+)+$")


def folded(text: str, width: int) -> str:
    """A message in lines of at most `width` characters, broken between words. A command at its end stays in one line,
    so that it can be copied.

    >>> folded("Saved at step 7. Go on with: vapo resume runs/a-long-name", 24)
    'Saved at step 7. Go on\\nwith:\\nvapo resume runs/a-long-name'
    """
    found = _COMMAND.search(text)
    if len(text) <= width or width < 20:
        return text
    body = text[: found.start()].rstrip() if found else text
    lines = textwrap.wrap(body, width, break_long_words=False, break_on_hyphens=False)
    if found and len(lines[-1]) + 1 + len(found[0]) <= width:
        return "\n".join([*lines[:-1], f"{lines[-1]} {found[0]}"])
    return "\n".join([*lines, *([found[0]] if found else [])])
