"""TensorBoard: event files in `tensorboard/` of the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter

from vapo.json_text import json_text
from vapo.trackers.tracker import COLUMNS, TrackedRun

PRETRAINING, EVALUATION = "pretraining/", "evaluation/"
"""The beginnings of the names of figures that are not those of a joint step."""


class TensorboardTracker:
    """Scalars by step, samples and alarms as text. A step that comes again, after a resume or a rollback, hides what
    was written of it and of later ones before."""

    def __init__(self, run: TrackedRun) -> None:
        self.id = str(run.folder / "tensorboard")
        # what was written after the checkpoint that a run goes on from is hidden; in a new run there is nothing
        self._writer = SummaryWriter(self.id, purge_step=run.step + 1)
        self._last = run.step
        self._alarms: list[tuple[str, int]] = []
        self._pretraining: SummaryWriter | None = None  # a folder of its own, because its steps are others
        self._last_of_pretraining = 0
        if run.earlier is None:
            self._writer.add_text("config", f"```json\n{json_text(dict(run.config), indent=1)}\n```")

    def figures(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        if any(name.startswith(PRETRAINING) for name in figures):
            writer = self._writer_of_pretraining(step)
        else:
            writer = self._writer
            # the evaluation of a step comes after its other figures, and hides none of them
            if not any(name.startswith(EVALUATION) for name in figures):
                self._begin_step(step)
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
        self._alarms.append((message, step))
        self._write_alarms(step)

    def close(self, *, failed: bool) -> None:
        """See `Tracker`."""
        self._writer.close()
        if self._pretraining is not None:
            self._pretraining.close()

    def _writer_of_pretraining(self, step: int) -> SummaryWriter:
        """The writer for this step of value pretraining; after a resume its first step hides the earlier start's."""
        if self._pretraining is None:
            self._pretraining = SummaryWriter(f"{self.id}/pretraining", purge_step=step)
        elif step <= self._last_of_pretraining:
            _hide_from(self._pretraining, step)
        self._last_of_pretraining = step
        return self._pretraining

    def _begin_step(self, step: int) -> None:
        """After a rollback, hide the steps that were taken back; their alarms move to where the run goes on."""
        if step <= self._last:
            _hide_from(self._writer, step)
            self._alarms = [(message, min(at, step)) for message, at in self._alarms]
            if any(at == step for _, at in self._alarms):
                self._write_alarms(step)
        self._last = step

    def _write_alarms(self, step: int) -> None:
        """Write the alarms of a step as one text: TensorBoard keeps the last one of a step."""
        self._writer.add_text("alarms", "\n\n".join(message for message, at in self._alarms if at == step), step)


def _hide_from(writer: SummaryWriter, step: int) -> None:
    """Hide what was written of this step and of later ones, as TensorBoard does where a session starts."""
    start = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=step, session_log=start))  # pyright: ignore[reportOptionalMemberAccess]


def _cell(value: Any) -> str:
    """The text of a cell of a Markdown table: LaTeX has backslashes before bars of its own."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def begin(run: TrackedRun) -> TensorboardTracker:
    """See `make_tracker`."""
    return TensorboardTracker(run)
