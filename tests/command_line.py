"""Runs `vapo` commands in this process."""

from __future__ import annotations

import sys

from vapo import cli


def vapo(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vapo", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def sets(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("--set", assignment)]
