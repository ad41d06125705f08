"""One check's outcome."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from vapo.errors import VapoError


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """A check, how it ended, what was found, and what to do about it."""

    check: str
    outcome: Outcome
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Outcome.OK, found)


def warning(check: str, found: str, fix: str = "") -> Finding:
    """The run can begin, and may not be what is wanted."""
    return Finding(check, Outcome.WARNING, found, fix)


def error(check: str, found: str, fix: str = "") -> Finding:
    """The run cannot begin, or its results would mean nothing."""
    return Finding(check, Outcome.ERROR, found, fix)


def skipped(check: str, why: str) -> Finding:
    """Not checked."""
    return Finding(check, Outcome.SKIPPED, why)


def of_error(check: str, problem: VapoError) -> Finding:
    """An error for the user. Where its fix is not given apart, it is the last sentence, with a question before it."""
    if problem.fix:
        return error(check, problem.found, problem.fix)
    *earlier, last = str(problem).splitlines() or [""]
    sentences = re.split(r"(?<=[.?]) (?=[A-Z])", last)
    asks_first = len(sentences) > 1 and sentences[-2].endswith("?") and bool(earlier or sentences[:-2])
    num_last = 2 if asks_first else 1
    found, fix = " ".join(sentences[:-num_last]), " ".join(sentences[-num_last:])
    if not found and not earlier:
        return error(check, fix)
    return error(check, "\n".join([*earlier, *([found] if found else [])]), fix)
