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
    """An error for the user; its last sentence is the fix."""
    sentences = re.split(r"(?<=[.?]) (?=[A-Z])", str(problem))
    return error(check, " ".join(sentences[:-1]) or sentences[0], sentences[-1] if len(sentences) > 1 else "")
