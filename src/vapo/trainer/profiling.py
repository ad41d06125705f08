"""`vapo train --profile`: where the time of a few steps went, and a trace of one more.

The first step warms up. The next ones are measured, with what comes between them: saves, evaluations, logs. One step
after them is traced, apart from the measured ones, because a trace slows what it looks at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vapo.json_text import json_text
from vapo.metrics import Phase
from vapo.trainer.profile_table import StepProfile, profile_rows, profile_table
from vapo.trainer.profiler import Profiler
from vapo.trainer.run import Run
from vapo.trainer.spans import Part, Trace
from vapo.trainer.step_trace import StepTrace, write_trace

FOLDER = "profile"


@dataclass(frozen=True)
class _Start:
    """Where the measured steps began."""

    at: float
    step: int
    tokens: int
    parts: Mapping[str, Part]


class StepProfiler(Profiler):
    """Measures `steps` joint steps of the run; `show` gets the table. Files go to the run's profile/ folder."""

    def __init__(self, run: Run, steps: int, show: Callable[[str], None]) -> None:
        self._run, self._steps, self._show = run, steps, show
        self._warm_up: int | None = None
        """Joint steps done before the one that warms up."""
        self._start: _Start | None = None
        self._trace: StepTrace | None = None
        self._finished = False

    def turn(self, *, next_is_a_step: bool) -> None:
        """See `Profiler`: begin or end what is due."""
        state = self._run.state
        if self._finished or (self._warm_up is None and not next_is_a_step):
            return
        if self._warm_up is None:
            self._warm_up = state.step
        done = state.step - self._warm_up
        whole = next_is_a_step or state.phase == Phase.DONE  # else an evaluation is due that belongs to the last step
        if self._trace is not None:
            if done > self._steps + 1:
                self._end_trace(self._trace)
        elif self._start is None:
            if done >= 1 and next_is_a_step:
                self._begin()
        elif done > self._steps and whole:
            self._measured(self._start)
            if next_is_a_step:
                self._begin_trace()
            else:
                self._finished = True

    def close(self) -> None:
        """See `Profiler`: a trace that was begun is dropped."""
        if self._trace is not None and not self._finished:
            self._trace.stop()

    def _begin(self) -> None:
        run = self._run
        run.spans.synchronize = True
        self._start = _Start(time.perf_counter(), run.state.step, run.state.num_tokens, run.spans.mark())

    def _measured(self, start: _Start) -> None:
        run = self._run
        run.spans.synchronize = False
        profile = StepProfile(
            first=start.step + 1,
            last=run.state.step,
            seconds=time.perf_counter() - start.at,
            sampled_tokens=run.state.num_tokens - start.tokens,
            parts=run.spans.since(start.parts),
            matrix_rate=run.matrix_rate,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            threads=torch.get_num_threads(),
        )
        table = profile_table(profile)
        self._show(table)
        rows = {row.name: {**asdict(row), "share": row.seconds / profile.seconds} for row in profile_rows(profile)}
        plain = {key: value for key, value in asdict(profile).items() if key != "parts"}

        def write(folder: Path) -> None:
            (folder / "table.txt").write_text(table + "\n")
            (folder / "profile.json").write_text(json_text({**plain, "parts": rows}, indent=1))

        self._write("profile", write)

    def _begin_trace(self) -> None:
        self._trace = StepTrace()
        try:
            self._trace.start()
        except RuntimeError as error:  # another profiler is running, or the driver lets none in
            self._finished = True
            self._run.alarm(f"No trace was made: torch's profiler does not start ({error}). The run goes on.")
            return
        self._run.spans.trace = self._trace

    def _end_trace(self, trace: StepTrace) -> None:
        self._finished = True
        self._run.spans.trace = Trace()
        trace.stop()
        path = self._run.folder.path / FOLDER / "trace.json.gz"
        if self._write("trace", lambda folder: write_trace(trace, folder / path.name)):
            size = path.stat().st_size / 1e6
            self._run.observer.note(
                f"trace of step {self._run.state.step}: {path} ({size:.1f} MB; open it at https://ui.perfetto.dev or "
                "in chrome://tracing)"
            )

    def _write(self, what: str, write: Callable[[Path], None]) -> bool:
        """Let `write` fill the folder; a disk that refuses raises an alarm, and the run goes on."""
        folder = self._run.folder.path / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            write(folder)
        except OSError as error:
            self._run.alarm(
                f"The {what} was not written: {error}. Free space on the disk of {folder}, then run with --profile "
                "again; this run goes on without it."
            )
            return False
        return True
