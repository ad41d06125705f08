"""Show a running run in the terminal.

The trainer calls `phase`, `progress`, `step`, `note`, `alarm` and `evaluation`; a view shows them. A terminal gets a
panel at the bottom, with notes scrolling above it; a notebook, HTML that is updated. Files and pipes get one plain
line per step, without control codes. `SilentView` shows nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from threading import RLock
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vapo.errors import counted
from vapo.metrics import metric_called
from vapo.reports.formatting import NOTHING, duration, figure, folded, interval, one_line, percent, short_count
from vapo.reports.notebook_screen import NotebookScreen
from vapo.reports.progress import SAMPLER_SPEED, SPEED, Progress, evaluation_line, sparkline
from vapo.reports.runfiles import Record, number
from vapo.trainer.observer import Observer

_PROGRESS_LINE_EVERY_S = 15.0  # shortest time between two plain lines about progress within a step
_SPARK_WIDTH = 28


class BestEffortStream:
    """A stream that ignores write errors, so that a closed pipe or a full disk does not end the run.

    A character that its encoding lacks becomes a question mark.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write; after an error, discard this and all later output."""
        try:
            return self._file.write(text)
        except UnicodeEncodeError:
            encoding = self._file.encoding
            return self.write(text.encode(encoding, errors="replace").decode(encoding))
        except OSError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        """Flush; after an error, discard all later output."""
        try:
            self._file.flush()
        except OSError:
            self._discard_output()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _discard_output(self) -> None:
        # also what the stream still buffers: the interpreter would fail to flush it at exit
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)


def best_effort_console(stream: TextIO | None = None) -> Console:
    """A console on a stream, by default stdout, that ignores a closed pipe or a full disk."""
    return Console(file=cast(TextIO, BestEffortStream(stream or sys.stdout)))


class SilentView(Observer):
    """A view that shows nothing: for tests, libraries and JSON output."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def show(self, text: str) -> None:
        """Ignore a text."""


class NotesOnStderr(SilentView):
    """Print notes and alarms to stderr, so that stdout holds only the output that programs read."""

    def note(self, message: str) -> None:
        """Print a note."""
        print(f"note: {message}", file=sys.stderr)

    def alarm(self, message: str) -> None:
        """Print an alarm."""
        print(f"ALARM: {message}", file=sys.stderr)


class LiveView:
    """Shows a run on `console`: as a live panel on a terminal, else as plain lines.

    Use it as a context manager, which restores the terminal however the run ends.

        with LiveView(title="maze-vapo-s0 · vapo") as view:
            train(run, view)
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        title: str = "vapo",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = console or best_effort_console()
        self._state = Progress(clock)
        self._screen = _screen(console, title, self._state, clock)

    def __enter__(self) -> Self:
        self._screen.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.close()

    def phase(self, name: str, done: int, total: int) -> None:
        """Show that the phase `name` (a Phase or any text) begins, or continues after `done` of `total` steps."""
        with self._screen.lock:
            new = name != self._state.name
            self._state.enter(name, done, total)
        if new:
            self._screen.print(
                f"{self._state.title}: {counted(total, 'step')}" + (f", {done} done before" if done else ""), ""
            )

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show progress within a step: `done` of `total` (None if unknown) of "rollout", "verify" …"""
        with self._screen.lock:
            self._state.activity = (one_line(what), done, total)
        self._screen.progressed()

    def step(self, metrics: Record) -> None:
        """Show the metrics of a step that ended."""
        with self._screen.lock:
            self._state.step(metrics)
        self._screen.stepped()

    def note(self, message: str) -> None:
        """Show one line about an event, such as a save or a resume."""
        self._screen.print(one_line(message), "dim")

    def show(self, text: str) -> None:
        """Show a text of several lines as it is, between two empty lines."""
        for line in ["", *text.splitlines(), ""]:
            self._screen.print(line, "")

    def alarm(self, message: str) -> None:
        """Show a warning that a metric or the run is unhealthy."""
        with self._screen.lock:
            self._state.alarm(message)
        self._screen.alarm(one_line(message))

    def evaluation(self, result: Record) -> None:
        """Show the result of an evaluation (a line of `evaluations.jsonl`)."""
        with self._screen.lock:
            self._state.evaluate(result)
        self._screen.print(evaluation_line(result), "cyan")


class _Screen(Protocol):
    """The output of a `LiveView`."""

    lock: RLock

    def open(self) -> None: ...
    def close(self) -> None: ...
    def print(self, line: str, style: str) -> None: ...
    def alarm(self, message: str) -> None: ...
    def stepped(self) -> None: ...
    def progressed(self) -> None: ...


def _screen(console: Console, title: str, state: Progress, clock: Callable[[], float]) -> _Screen:
    """The screen that suits the console."""
    if console.is_jupyter:
        return NotebookScreen(title, state, clock)
    # with FORCE_COLOR rich treats any file as a terminal; a panel needs a real one
    if console.file.isatty() and console.is_interactive:
        return _PanelScreen(console, title, state)
    return _LineScreen(console, title, state, clock)


class _LineScreen:
    """Prints plain lines, for log files and pipes."""

    def __init__(self, console: Console, title: str, state: Progress, clock: Callable[[], float]) -> None:
        self.lock = RLock()
        self._console, self._title, self._state, self._clock = console, title, state, clock
        self._last_line_at = -math.inf

    def open(self) -> None:
        self.print(one_line(self._title), "")

    def close(self) -> None:
        pass

    def print(self, line: str, style: str) -> None:
        # the style is ignored, so that FORCE_COLOR puts no control codes into a log file
        self._console.print(Text(line), soft_wrap=True)

    def alarm(self, message: str) -> None:
        self.print(f"ALARM {message}", "")

    def stepped(self) -> None:
        self._last_line_at = self._clock()
        self.print(self._state.step_line(), "")

    def progressed(self) -> None:
        now = self._clock()
        if now - self._last_line_at >= _PROGRESS_LINE_EVERY_S:
            self._last_line_at = now
            state = self._state
            where = f"{state.title} {state.done}/{state.total}  " if state.total > 1 else ""  # empty before a phase
            self.print(f"{where}{state.activity_text()}", "")


class _PanelScreen:
    """Draws a panel of at most twelve lines, and redraws it four times a second."""

    def __init__(self, console: Console, title: str, state: Progress) -> None:
        self.lock = RLock()
        self._console, self._title, self._state = console, one_line(title), state
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, vertical_overflow="crop")

    def open(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._state.activity = None
        self._live.stop()

    def print(self, line: str, style: str) -> None:
        self._console.print(Text(folded(line, self._console.width), style=style), soft_wrap=True)

    def alarm(self, message: str) -> None:
        self.print(f"ALARM {message}", "bold yellow")

    def stepped(self) -> None:
        pass  # the next refresh shows it

    def progressed(self) -> None:
        pass

    def _draw(self) -> RenderableType:
        with self.lock:
            return panel(self._state, self._title)


def panel(state: Progress, title: str) -> Panel:
    """The live panel: phase and times, then one row for each metric that the run has."""
    m = state.metrics
    explained, value_loss = state.value_figures
    rows = Table.grid(padding=(0, 2), expand=True)
    rows.add_column(style="dim", no_wrap=True, min_width=14)
    rows.add_column(justify="right", style="bold", no_wrap=True, min_width=7)
    rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)

    def row(metric: str, value: str, more: str | Text = "") -> None:
        if value != NOTHING:
            rows.add_row(metric_called(metric).short, value, more)

    def beside(*parts: tuple[str, str]) -> Text:
        known = [(metric_called(metric).short, text) for metric, text in parts if text != NOTHING]
        return Text("   ").join(Text.assemble((f"{label} ", "dim"), text) for label, text in known)

    spark = sparkline(state.accuracy, _SPARK_WIDTH)
    reward = beside(("reward", figure(number(m.get("reward")))))
    row("accuracy", figure(number(m.get("accuracy"))), Text.assemble((spark, "blue"), "  ", reward))
    spark = sparkline(state.explained_variance, _SPARK_WIDTH)
    loss = beside(("value/loss", figure(value_loss)))
    row("value/explained_variance", figure(explained), Text.assemble((spark, "green"), "  ", loss))
    row(
        "completions/mean_length",
        figure(number(m.get("completions/mean_length"))),
        beside(
            ("completions/clipped_ratio", percent(number(m.get("completions/clipped_ratio")))),
            ("entropy", figure(number(m.get("entropy")))),
        ),
    )
    row(
        SPEED,
        short_count(state.tokens_per_second),
        beside(
            (SAMPLER_SPEED, short_count(number(m.get(SAMPLER_SPEED)))),
            ("num_samples", short_count(number(m.get("num_samples")))),
        ),
    )
    if state.last_evaluation:
        rows.add_row("held-out", figure(number(state.last_evaluation.get("avg"))), _held_out(state))
    alarm = Text()
    if state.num_alarms:
        alarm = Text(f"alarm {state.num_alarms}: {state.last_alarm}", style="yellow")
    now = Text(state.activity_text() or " ", style="dim", no_wrap=True, overflow="ellipsis")
    body = Group(_times(state), *([rows] if rows.row_count else []), *([alarm] if alarm else []), now)
    return Panel(body, title=Text(title), title_align="left", border_style="dim", padding=(0, 1))


def _times(state: Progress) -> Table:
    """The row with phase, step, progress bar and times."""
    line = Table.grid(padding=(0, 2), expand=False)
    times = [f"{duration(state.elapsed)} elapsed"]
    if not math.isnan(state.seconds_left):
        times.append(f"about {duration(state.seconds_left)} left")
    if not math.isnan(state.seconds_per_step):
        times.append(f"{duration(state.seconds_per_step)}/step")
    line.add_row(
        Text(state.title or "starting", style="bold"),
        f"{state.done}/{state.total}" if state.total else "",
        ProgressBar(total=max(1, state.total), completed=state.done, width=18),
        Text(" · ".join(times), style="dim", no_wrap=True, overflow="ellipsis"),
    )
    return line


def _held_out(state: Progress) -> Text:
    """The newest held-out score's interval and step, and the first score."""
    first, last = state.first_evaluation or {}, state.last_evaluation or {}
    bounds = interval(number(last.get("low")), number(last.get("high")))
    text = f"avg@{last.get('k', 'k')} {bounds} at step {last.get('step', '?')}"
    if first is not last:
        text += f", from {figure(number(first.get('avg')))}"
    return Text(text, style="dim")
