"""`vapo` commands in processes of their own, which can be paused, continued and stopped together."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vapo.errors import StoppedError
from vapo.study.cell_cards import outcome_of

STOP_GRACE_S = 60.0
"""Seconds that a process may take to save after a stop or a pause."""


class CellProcesses:
    """The processes that run now. A pause lets them save and end, and holds back new ones until it is over.

    `program` is what the arguments follow on each command line. With -P modules of the current folder do not replace
    Python's, as in the `vapo` command.
    """

    def __init__(self, program: Sequence[str] = (sys.executable, "-P", "-m", "vapo")) -> None:
        self._program = program
        self._children: set[subprocess.Popen[bytes]] = set()
        self._to_end: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._go = threading.Event()
        self._go.set()
        self._paused_at = self._paused_seconds = 0.0
        self._lock = threading.Lock()

    @property
    def paused(self) -> bool:
        """Whether a pause holds new processes back."""
        return not self._go.is_set() and not self._stopping

    @property
    def stopping(self) -> bool:
        """Whether all processes are told to stop."""
        return self._stopping

    @property
    def idle(self) -> bool:
        """Whether no process runs."""
        with self._lock:
            return not self._children

    def clock(self) -> float:
        """Seconds since some moment, which stand still during a pause."""
        with self._lock:
            now = self._paused_at if not self._go.is_set() else time.monotonic()
            return now - self._paused_seconds

    def run(self, arguments: Sequence[str], log: Path) -> int | None:
        """Run the program with these arguments and return its exit code, or None if a pause ended it.

        It starts when no pause holds it back. Its output goes to `log`.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            child = self._start(arguments, file)
            if child is None:
                return StoppedError.exit_code
            try:
                code = child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)
                    ended_by_pause = child in self._to_end
                    self._to_end.discard(child)
        return None if ended_by_pause and outcome_of(code) == "unfinished" else code

    def pause(self) -> None:
        """Let every process save and end, and hold back new ones."""
        with self._lock:
            if not self._go.is_set():
                return
            self._go.clear()
            self._paused_at = time.monotonic()
            children = self._children - self._to_end  # a second signal would end one before it has saved
            self._to_end |= children
        for child in children:
            child.send_signal(signal.SIGTERM)

    def go_on(self) -> None:
        """End a pause."""
        with self._lock:
            if not self._go.is_set():
                self._paused_seconds += time.monotonic() - self._paused_at
                self._go.set()

    def kill_late(self) -> None:
        """Kill the processes that have not ended a while after the pause began; they resume from a checkpoint."""
        with self._lock:
            late = list(self._to_end) if time.monotonic() - self._paused_at > STOP_GRACE_S else []
        for child in late:
            child.kill()

    def stop(self) -> None:
        """Send SIGTERM to every process, so that it saves and stops; kill those that take too long."""
        with self._lock:
            self._stopping = True
            children = list(self._children)
            told = set(self._to_end)
        self.go_on()  # so that those who wait for the end of a pause return
        for child in children:
            if child not in told:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for child in children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def _start(self, arguments: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes] | None:
        """A process, as soon as no pause holds it back; None after a stop."""
        while True:
            self._go.wait()
            with self._lock:
                if self._stopping:
                    return None
                if not self._go.is_set():
                    continue
                child = subprocess.Popen(  # noqa: S603  the program and its arguments, no shell
                    [*self._program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process only, which then stops the children
                )
                self._children.add(child)
                return child
