"""The terminal view of a running study: a progress bar with the time left, and a line per finished cell."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from vapo.reports.formatting import duration
from vapo.reports.live import best_effort_console


class Counted(Protocol):
    """The properties of a study's runner that the view reads."""

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def running(self) -> Mapping[str, object]: ...
    @property
    def paused(self) -> bool: ...


class StudyView:
    """Prints lines (`say`) and updates a progress bar (`progress`), if there is one."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console, self._bar = console, bar
        self._task: TaskID | None = bar.add_task("starting", total=None, left="") if bar else None

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def progress(self, runner: Counted) -> None:
        """Update the bar."""
        if self._bar is None or self._task is None:
            return
        left = runner.seconds_left
        activity = "paused" if runner.paused else "; ".join(runner.running) or "comparing"
        time_left = f"about {duration(left)} left" if left else ""
        self._bar.update(
            self._task, completed=runner.done, total=max(1, runner.total), description=activity, left=time_left
        )


@contextmanager
def study_view(as_json: bool) -> Iterator[StudyView]:
    """A view with a bar on a terminal, and plain lines elsewhere; on stderr if stdout is for JSON."""
    console = best_effort_console(sys.stderr if as_json else sys.stdout)
    if as_json or not console.is_terminal:
        yield StudyView(console, None)
        return
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    activity = TextColumn("{task.description}", markup=False, table_column=rest)
    left = TextColumn("{task.fields[left]}")
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), left, activity)
    with Progress(*columns, console=console, expand=True) as bar:
        yield StudyView(console, bar)
