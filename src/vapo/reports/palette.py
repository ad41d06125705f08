"""Colours for light and dark pages, one per role, chosen for colour-blind readers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """One colour scheme. `first` is for the main curve, `second` to `fifth` for the others in order."""

    paper: str
    ink: str
    quiet: str
    line: str
    first: str
    second: str
    third: str
    fourth: str
    fifth: str


LIGHT = Palette(
    paper="#ffffff",
    ink="#1c2430",
    quiet="#66707d",
    line="#e3e7ec",
    first="#2563b0",
    second="#c2570c",
    third="#2f8f6b",
    fourth="#8a63b8",
    fifth="#b8a038",
)
DARK = Palette(
    paper="#14181f",
    ink="#e6eaf0",
    quiet="#97a2b0",
    line="#2b323d",
    first="#6ea8f0",
    second="#f09a5a",
    third="#5fc79e",
    fourth="#b99ae6",
    fifth="#d8c25a",
)
