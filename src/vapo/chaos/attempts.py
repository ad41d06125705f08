"""Run one attempt at the small run in a forked process, and watch it from the parent."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vapo.durability.watch import Watch
from vapo.reports.live import SilentView
from vapo.session import lifecycle as runs
from vapo.session.config import Config
from vapo.session.signals import carry_out, exit_code_of
from vapo.trainer.run import Run

LIMIT_S = 600.0
"""Seconds after which an attempt counts as hanging; the long run took two minutes on a busy machine."""
CRASHED = 70
"""Exit code of a child that ended with a traceback."""

Tamper = Callable[[Run], None]


@dataclass(frozen=True)
class AttemptResult:
    """Exit code of an attempt (negative for a signal), its last activity, seconds since the signal, and its output."""

    code: int
    doing: str
    seconds: float
    output: str = ""


class LastDoing(Watch):
    """Writes the run's current activity to a file, where it stays after a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY)

    def beat(self, doing: str) -> None:
        """Write the current activity."""
        os.pwrite(self._file, f"{doing:<40}".encode(), 0)


def attempt(
    folder: Path,
    config: Config,
    *,
    tamper: Tamper | None = None,
    end: signal.Signals | None = None,
    after_s: float = 0.0,
    when_forked: Callable[[int], None] | None = None,
    notes: Path | None = None,
) -> AttemptResult:
    """Start or resume the run in a child process; send it the signal `end` after `after_s` seconds.

    `tamper` may change the run's objects before it starts; `when_forked` gets the child's process id. The child's
    activity and output are written into the folder `notes`, by default the parent of the run's folder.
    """
    notes = notes or folder.parent  # `notes` must not be on a disk that a trial fills
    doing_file, output = notes / f"{folder.name}.doing", notes / f"{folder.name}.output"
    doing_file.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_in_child(folder, config, tamper, doing_file, output)
    if when_forked:
        when_forked(child)
    started = time.monotonic()
    if end is not None:
        status = _wait(child, started + after_s)
        if status is None:
            os.kill(child, end)
            started = time.monotonic()
            status = _wait(child, started + LIMIT_S)
    else:
        status = _wait(child, started + LIMIT_S)
    seconds = time.monotonic() - started
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return AttemptResult(CRASHED, "hung: " + _read(doing_file), seconds)
    return AttemptResult(os.waitstatus_to_exitcode(status), _read(doing_file), seconds, _read(output))


def _run_in_child(folder: Path, config: Config, tamper: Tamper | None, doing_file: Path, output: Path) -> None:
    """Run the attempt in the child process; never returns."""
    code = CRASHED
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:

        def prepare() -> Run:
            if (folder / "config.yaml").exists():
                run = runs.resume(folder, SilentView())
            else:
                run = runs.begin(config, folder, SilentView())
            run.watch = LastDoing(doing_file)
            if tamper:
                tamper(run)
            return run

        code = exit_code_of(lambda: carry_out(prepare, lambda run, _: runs.finish(run, report=False)))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, until: float) -> int | None:
    """The child's exit status, or None if it still runs at `until`."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(min(0.002, max(0.0, until - time.monotonic())))


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else "starting"
