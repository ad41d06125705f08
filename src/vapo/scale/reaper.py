"""Run as a program: `python reaper.py FOLDER PID`. Ends what is left of a local Ray once its stdin closes.

The process that started Ray, PID, holds the other end, so this happens however it ends; it is left alone. Ray's own
processes watch each other, but some of them stay after a SIGKILL (Ray 2.60: the agents of the dashboard and of runtime
environments). They are known by the files of the session's folder that they hold open, or name on their command lines.
Uses the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PASSES, _PAUSE_S = 5, 0.2


def users_of(folder: str, apart: int = 0) -> list[int]:
    """The processes that have a file of the folder open, or name it on their command line, without this and `apart`."""
    return [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and int(process.name) not in (os.getpid(), apart) and _uses(process, folder)
    ]


def _uses(process: Path, folder: str) -> bool:
    with contextlib.suppress(OSError):
        if folder.encode() in (process / "cmdline").read_bytes():
            return True
        return any(_target(link).startswith(folder) for link in (process / "fd").iterdir())
    return False


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""


def reap(folder: str, apart: int) -> None:
    """Kill the users of the folder, those that start meanwhile too, and remove it."""
    for _ in range(_PASSES):
        found = users_of(folder, apart)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    reap(sys.argv[1], int(sys.argv[2]))
