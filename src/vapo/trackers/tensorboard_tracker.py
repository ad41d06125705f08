"""TensorBoard: event files in `tensorboard/` of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from vapo.json_text import json_text
from vapo.trackers.tracker import COLUMNS, TrackedRun


class TensorboardTracker:
    """Scalars by step, samples and alarms as text."""

    def __init__(self, run: TrackedRun) -> None:
        self.id = str(run.folder / "tensorboard")
        # what was written after the checkpoint that a run goes on from is hidden
        self._writer = SummaryWriter(self.id, purge_step=run.step + 1 if run.step else None)
        self._pretraining: SummaryWriter | None = None  # a folder of its own, whose steps the purge does not mean
        if run.earlier is None:
            self._writer.add_text("config", f"```json\n{json_text(dict(run.config), indent=1)}\n```")

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        writer = self._writer
        if any(name.startswith("pretraining/") for name in figures):
            writer = self._pretraining = self._pretraining or SummaryWriter(f"{self.id}/pretraining")
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """See `Tracker`."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |" for row in rows]
        self._writer.add_text("samples", "\n".join(lines), step)

    def alarm(self, message: str, step: int) -> None:
        """See `Tracker`."""
        self._writer.add_text("alarms", message, step)

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._writer.close()
        if self._pretraining is not None:
            self._pretraining.close()


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def begin(run: TrackedRun) -> TensorboardTracker:
    """See `make_tracker`."""
    return TensorboardTracker(run)
