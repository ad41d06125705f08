"""Faults of rows that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Drop:
    """A row that is left out. Rows are counted by the kind of fault."""

    where: str
    kind: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The kind of fault, with its details if there are any."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Fault(NamedTuple):
    """The fault of a row: its kind, and details that differ from row to row."""

    kind: str
    detail: str = ""
