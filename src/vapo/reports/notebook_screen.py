"""The output of a live view in a notebook: one piece of HTML under the cell, replaced while the run goes on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from html import escape
from threading import RLock
from typing import Any

from vapo.metrics import metric_called
from vapo.reports.formatting import duration, one_line
from vapo.reports.progress import Progress, evaluation_line, sparkline

_UPDATE_EVERY_S = 1.0  # each update travels to the browser and replaces the output that the notebook file keeps
_LINES = 200  # of the log, which is folded away


class NotebookScreen:
    """Shows phase, figures and alarms; notes are in a log that opens with a click. Works from any thread."""

    def __init__(self, title: str, state: Progress, clock: Callable[[], float]) -> None:
        self.lock = RLock()
        self._title, self._state, self._clock = one_line(title), state, clock
        self._handle: Any = None
        self._log: deque[str] = deque(maxlen=_LINES)
        self._alarms: list[str] = []
        self._updated_at = -math.inf
        self._open = False

    def open(self) -> None:
        from IPython.display import HTML, display

        self._open = True
        self._handle = display(HTML(self.html()), display_id=True)

    def close(self) -> None:
        self._open, self._state.activity = False, None
        self._update(due=True)

    def print(self, line: str, style: str) -> None:
        with self.lock:
            self._log.append(line)
        self._update()

    def alarm(self, message: str) -> None:
        with self.lock:
            self._alarms.append(f"ALARM {message}")
        self._update()

    def stepped(self) -> None:
        with self.lock:
            self._log.append(self._state.step_line())
        self._update()

    def progressed(self) -> None:
        self._update()

    def _update(self, *, due: bool = False) -> None:
        from IPython.display import HTML

        now = self._clock()
        if self._handle is not None and (due or now - self._updated_at >= _UPDATE_EVERY_S):
            self._updated_at = now
            with self.lock:
                self._handle.update(HTML(self.html()))

    def html(self) -> str:
        """The state of the run now."""
        state = self._state
        phase = f"{state.title or 'starting'} {state.done}/{state.total}" if state.total else "starting"
        times = [f"{duration(state.elapsed)} elapsed"]
        if self._open and not math.isnan(state.seconds_left):
            times.append(f"about {duration(state.seconds_left)} left")
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in self._figures())
        alarms = "".join(f"<div><b>{escape(line)}</b></div>" for line in self._alarms)
        now = f"<div><small>{escape(state.activity_text())}</small></div>" if self._open else ""
        log = "\n".join(map(escape, self._log))
        return (
            f"<div><b>{escape(self._title)}</b> &nbsp; {escape(phase)} &nbsp; "
            f'<progress value="{state.done}" max="{max(1, state.total)}"></progress> &nbsp; '
            f"<small>{escape(' · '.join(times))}</small></div>"
            f"<table>{rows}</table>{alarms}{now}"
            f"<details><summary>log</summary><pre>{log}</pre></details>"
        )

    def _figures(self) -> list[tuple[str, str]]:
        """(name, value) of each row; the two curves of a run beside their values."""
        state = self._state
        curves = {
            metric_called("accuracy").short: state.accuracy,
            metric_called("value/explained_variance").short: state.explained_variance,
        }
        rows = [(name, f"{text} {sparkline(curves.get(name, []), 40)}".rstrip()) for name, text in state.figures()]
        return rows + ([("held out", evaluation_line(state.last_evaluation))] if state.last_evaluation else [])
