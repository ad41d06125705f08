"""The outcome of a cell, in its `cell.json`: a cell's folder is a run directory with this file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vapo.errors import DivergedError, StoppedError
from vapo.json_text import json_text
from vapo.reports.runfiles import number, read_run
from vapo.study.cells import Cell
from vapo.study.comparison.compared_run import Outcome


def read_card(folder: Path) -> dict[str, Any]:
    """The content of cell.json; empty if it is missing or damaged, so that the cell is resumed."""
    try:
        card = json.loads((folder / "cell.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def started_settings(cell: Cell) -> Any:
    """The settings that the cell's run was started with: a killed study leaves no card. Empty without."""
    try:
        return json.loads(cell.started_file.read_bytes())
    except (OSError, ValueError):
        return {}


def ended(cell: Cell) -> bool:
    """Whether the cell's run has finished or diverged."""
    return read_card(cell.folder).get("outcome") in ("finished", "diverged")


def outcome_of(code: int) -> Outcome:
    """The outcome of a run, from its exit code. Runs that a signal stopped are unfinished."""
    if code in (StoppedError.exit_code, 130) or code < 0:
        return "unfinished"
    if code == 0:
        return "finished"
    return "diverged" if code == DivergedError.exit_code else "failed"


def critic_card(cell: Cell) -> dict[str, Any] | None:
    """The cost of the cell's shared critic, including the critics it started from; None without one.

    The cell's own counts do not contain this cost.
    """
    if cell.critic is None:
        return None
    rows, before = read_run(cell.critic).metrics, read_card(cell.critic).get("critic") or {}
    last = rows[-1] if rows else {}
    own = {
        "samples": int(last.get("num_samples", 0)),
        "tokens": int(last.get("num_tokens", 0)),
        "seconds": sum(number(row.get("step_time")) for row in rows),
        "gradient_steps": sum(int(row.get("pretrain/gradient_steps", 0)) for row in rows),
    }
    return {
        "name": read_card(cell.critic).get("method", cell.critic.name),
        **{key: value + before.get(key, 0) for key, value in own.items()},
        "explained_variance": last.get("pretrain/explained_variance"),
    }


def finished_methods(folders: Sequence[Path]) -> set[str]:
    """The methods that have a finished run in one of these folders."""
    return {card["method"] for card in map(read_card, folders) if card.get("outcome") == "finished"}


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json_text(data, indent=1) + "\n")
    temporary.replace(path)
