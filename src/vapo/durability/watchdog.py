"""The watchdog process; standard library only, so that it starts in milliseconds.

python watchdog.py PID LOG STACKS FACTOR FLOOR < reports, one activity per line
"""

import os
import select
import shlex
import signal
import sys
import time


class Deadlines:
    """The longest allowed pause for each activity, learned from earlier pauses."""

    def __init__(self, factor: float, floor_s: float) -> None:
        self.factor, self.floor_s = factor, floor_s
        self.longest: dict[str, float] = {}

    def learn(self, doing: str, pause_s: float) -> None:
        """Record the length of a pause in the activity `doing`."""
        self.longest[doing] = max(pause_s, self.longest.get(doing, 0.0))

    def of(self, doing: str) -> float:
        """Seconds after which a pause in the activity `doing` is reported."""
        return max(self.floor_s, self.factor * self.longest.get(doing, 0.0))


def watch(pid: int, log: str, stacks: str, deadlines: Deadlines, pipe: int = 0) -> None:
    """Read reports until the pipe ends; log every pause that is too long, once."""
    doing, last, reported, rest = "starting", time.monotonic(), False, b""
    while True:
        left = None if reported else max(0.0, last + deadlines.of(doing) - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        now = time.monotonic()
        if not ready:
            reported = True
            _report(pid, log, stacks, doing, now - last, deadlines.longest.get(doing))
            continue
        read = os.read(pipe, 65536)
        if not read:
            return
        if reported:
            _write(log, f"{doing} continued after {now - last:.0f} s")
        deadlines.learn(doing, now - last)
        *lines, rest = (rest + read).split(b"\n")
        doing, last, reported = (lines[-1].decode() if lines else doing), now, False


def _report(pid: int, log: str, stacks: str, doing: str, pause_s: float, longest: float | None) -> None:
    before = "no earlier pause is known" if longest is None else f"the longest pause before was {longest:.0f} s"
    where = os.path.join(os.path.dirname(log), stacks)
    _write(
        log,
        f"no report for {pause_s:.0f} s while {doing} ({before}). "
        f"The stacks of process {pid} are in {where}. If it does not continue, end it: kill -9 {pid}, "
        f"then vapo resume {shlex.quote(os.path.dirname(log))}",
        loud=True,
    )
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        _write(log, f"process {pid} is gone", loud=True)


def _write(log: str, text: str, *, loud: bool = False) -> None:
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n"
    try:
        with open(log, "a") as file:
            file.write(line)
    except OSError:
        pass  # the trainer reports a full disk
    if loud:
        try:
            sys.stderr.write(line)
            sys.stderr.flush()
        except OSError:  # stderr is closed; the stacks are written anyway
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    _pid, _log, _stacks, _factor, _floor = sys.argv[1:]
    watch(int(_pid), _log, _stacks, Deadlines(float(_factor), float(_floor)))
