"""The trainer reports its activity, and a watchdog process logs when the reports stop.

It is a separate process, because a trainer that hangs in C code while it holds the interpreter's lock blocks its own
threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vapo.durability import watchdog

STACKS = "stacks.txt"
LOG = "watchdog.log"
CLOSE_S = 5.0
_QUIET_S = 0.05
"""Shortest time in seconds between two reports of the same activity; more reports would cost time."""


class Watch:
    """A watch that does nothing."""

    def beat(self, doing: str) -> None:
        """Report the current activity."""

    def close(self) -> None:
        """Stop watching."""


class Watchdog(Watch):
    """Runs a watchdog process that logs what hangs, with stack traces.

    If an activity sends no report for `factor` times its longest pause so far (at least `floor_s` seconds), the process
    makes the trainer write the stacks of all its threads to `folder/stacks.txt`, and logs this to stderr and
    `folder/watchdog.log`. It does not end the trainer, because a slow disk looks like a hang.
    """

    def __init__(self, folder: Path, *, factor: float, floor_s: float) -> None:
        self._stacks = (folder / STACKS).open("a")  # keeps the stacks of earlier attempts
        # faulthandler works while Python hangs; register before the process starts, whose signal would end the trainer
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        _open.append(self)
        command = [sys.executable, "-I", "-S", watchdog.__file__]
        command += [str(os.getpid()), str(folder / LOG), STACKS, str(factor), str(floor_s)]
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            command, stdin=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)
        self._last_activity, self._last_report_at = "", 0.0

    def beat(self, doing: str) -> None:
        """Report the current activity."""
        now = time.monotonic()
        if doing == self._last_activity and now - self._last_report_at < _QUIET_S:
            return
        self._last_activity, self._last_report_at = doing, now
        with contextlib.suppress(OSError):  # if the pipe is full or closed, the run continues without a watchdog
            self._pipe.write(doing.encode() + b"\n")

    def close(self) -> None:
        """End the process and remove the signal handler."""
        self._pipe.close()
        try:
            self._process.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:  # the watchdog hangs, for example on a full stderr
            self._process.kill()
            self._process.wait()
        _open.remove(self)
        if _open:  # the signal has one handler in a process, and without it would end the trainer
            faulthandler.register(signal.SIGUSR1, file=_open[-1]._stacks, all_threads=True)
        else:
            faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()
        with contextlib.suppress(OSError):
            if (path := Path(self._stacks.name)).stat().st_size == 0:
                path.unlink()  # an empty file would look like a crash


_open: list[Watchdog] = []
"""The watchdogs of this process, one for each run in it; the newest one's file gets the stacks."""
