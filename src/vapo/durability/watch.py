"""Signs of life: the trainer reports what it does, and a watchdog process notices when the reports stop.

It is a process, since a trainer that hangs in a library's C code while it holds the interpreter's lock stops its
threads too.
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
"""Shortest time in seconds between two signs of life about the same work; more would cost time."""


class Watch:
    """A watch that does nothing."""

    def beat(self, doing: str) -> None:
        """Report that the run is alive and what it is doing."""

    def close(self) -> None:
        """Stop watching."""


class Watchdog(Watch):
    """Runs a watchdog process that logs what hangs, with stack traces.

    After `factor` times the longest pause seen so far in what was being done (at least `floor_s` seconds), the
    process makes the trainer write the stacks of all its threads to `folder/stacks.txt` and says so on stderr and in
    `folder/watchdog.log`. It never ends the trainer: a slow disk looks like a stuck one.
    """

    def __init__(self, folder: Path, *, factor: float, floor_s: float) -> None:
        self._stacks = (folder / STACKS).open("a")  # what an earlier attempt hung in stays
        # from C, so it works while Python is stuck; before the process starts, or its signal would end the trainer
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
        command = [sys.executable, "-I", "-S", watchdog.__file__]
        command += [str(os.getpid()), str(folder / LOG), STACKS, str(factor), str(floor_s)]
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            command, stdin=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)
        self._said, self._at = "", 0.0

    def beat(self, doing: str) -> None:
        """Report that the run is alive and what it is doing."""
        now = time.monotonic()
        if doing == self._said and now - self._at < _QUIET_S:
            return
        self._said, self._at = doing, now
        with contextlib.suppress(OSError):  # full, or gone: the run goes on without a watch
            self._pipe.write(doing.encode() + b"\n")

    def close(self) -> None:
        """End the process and take the signal handler back."""
        self._pipe.close()
        try:
            self._process.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:  # it hangs itself, perhaps on a full stderr
            self._process.kill()
            self._process.wait()
        faulthandler.unregister(signal.SIGUSR1)
        self._stacks.close()
        with contextlib.suppress(OSError):
            if (path := Path(self._stacks.name)).stat().st_size == 0:
                path.unlink()  # an empty one looks like a crash
