"""Kills processes of small runs on Ray, and counts the runs whose results differ from an undisturbed one.

A run is a process of its own here, as a user starts it. Runs come one after the other, since each has a Ray of its own
(some ten seconds), and each run has several of its processes killed, one at a time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vapo.chaos.small_run import differences, fingerprint, small_config
from vapo.chaos.suite import upper_bound
from vapo.json_text import json_text
from vapo.session.environment import environment
from vapo.types import Progress

PER_RUN = 5
"""Kills of one run at most."""
SCALED: dict[str, Any] = {
    "trainer": {"steps": 8},
    "scale": {"backend": "ray", "training_ranks": 2, "rollout_workers": 2, "verifier_workers": 2, "restarts": PER_RUN},
}
KILLED = {
    "rollout worker killed": "ray::RolloutWorker",
    "verifier worker killed": "ray::VerifierWorker",
    "training rank killed": "ray::Rank",
    "driver killed, then resumed": "",
}
"""The rows, and how the processes are called; the driver is the process that was started."""
TRIALS, QUICK = 20, 2
PAUSE_S = 2.0
"""A worker is killed so long after the run has written another line, at most."""
LIMIT_S = 400.0
"""Seconds after which a run counts as hanging: without another line, or without an end."""
ORPHANS_S = 20.0
"""Seconds within which the processes of a run that has ended must be gone."""


@dataclass
class Row:
    """One kind of kill."""

    name: str
    kills: int = 0
    runs: int = 0
    places: Counter[str] = field(default_factory=Counter)
    """What the killed processes were doing."""
    failures: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data, with the columns of the other suite."""
        return {
            "fault": self.name,
            "trials": self.kills,
            "runs": self.runs,
            "failures": len(self.failures),
            "bound": upper_bound(len(self.failures), self.kills),
            "places": dict(self.places.most_common()),
            "longest_s": round(self.longest_s, 2),
            "details": self.failures,
        }


def run_scale_suite(work: Path, *, quick: bool, seed: int, on_progress: Progress) -> dict[str, Any]:
    """Carry out all kills, and return the rows with the machine, like `run_suite`. What there is so far is in
    `work/chaos.json`."""
    chance, wanted = random.Random(seed), QUICK if quick else TRIALS  # noqa: S311 - chance, not secrets
    settings = work / "scaled.yaml"
    settings.write_text(small_config(SCALED).to_yaml())
    began = time.monotonic()
    calm = work / "undisturbed"
    code = _wait(_start(settings, calm), LIMIT_S)
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with code {code}; its output is in {calm}.output")
    whole, expected = time.monotonic() - began, fingerprint(calm)
    rows, result = [Row(name) for name in KILLED], dict[str, Any]()
    for row in rows:
        title = KILLED[row.name]
        while row.kills < wanted and row.runs < wanted:
            on_progress("scale", sum(one.kills for one in rows), wanted * len(rows))
            folder = work / f"{row.name.split()[0]}-{row.runs}"
            pauses = [chance.uniform(0, PAUSE_S if title else whole) for _ in range(min(PER_RUN, wanted - row.kills))]
            start = time.monotonic()
            trial = Trial(settings, folder, title, chance)
            row.failures += trial.carried_out(pauses, expected)
            row.kills, row.runs = row.kills + trial.kills, row.runs + 1
            row.places += trial.places
            row.longest_s = max(row.longest_s, time.monotonic() - start)
            result = {"environment": environment(), "seed": seed, "rows": [one.as_dict() for one in rows]}
            (work / "chaos.json").write_text(json_text(result, indent=1))
    return result


class Trial:
    """A run of which processes are killed. `title` begins the names of those processes; empty means the driver."""

    def __init__(self, settings: Path, folder: Path, title: str, chance: random.Random) -> None:
        self.settings, self.folder, self.title, self.chance = settings, folder, title, chance
        self.kills, self.places = 0, Counter[str]()
        self._own: set[int] = set()

    def carried_out(self, pauses: list[float], expected: dict[str, Any]) -> list[str]:
        """What went wrong; nothing if the run ended as it should. `pauses` are the seconds before each kill."""
        code = (self._kill_workers if self.title else self._kill_drivers)(pauses)
        failures = []
        if code != 0:
            failures.append(f"{self.folder}: exit code {code}")
        elif different := differences(expected, fingerprint(self.folder)):
            failures.append(f"{self.folder}: different {', '.join(different[:5])}")
        deadline = time.monotonic() + ORPHANS_S
        while (left := [pid for pid in self._own if _lives(pid)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left:
            failures.append(f"{self.folder}: {len(left)} of its processes live on")
        return failures

    def _kill_workers(self, pauses: list[float]) -> int:
        """Kill one of the workers after each pause, which begins when the run has got ahead since the kill before; the
        exit code."""
        run, seen = _start(self.settings, self.folder), -1
        for pause in pauses:
            # before its folder has settings a run starts: a process that is lost then ends the start, with an error
            if not self._got_ahead(run, seen):
                break
            time.sleep(pause)
            victims = self._victims(run)
            if victims and run.poll() is None:
                pid = self.chance.choice(sorted(victims))
                os.kill(pid, signal.SIGKILL)
                seen = _lines(self.folder)
                self._count(victims[pid].removeprefix(self.title).lstrip(".") or "idle")
        self._victims(run)
        return _wait(run, LIMIT_S)

    def _kill_drivers(self, pauses: list[float]) -> int:
        """Kill the run's own process after each pause, and go on with the run; the exit code."""
        run = _start(self.settings, self.folder)
        for pause in pauses:
            try:
                return run.wait(pause)
            except subprocess.TimeoutExpired:
                self._victims(run)
                run.kill()
                run.wait()
                begun = (self.folder / "config.yaml").exists()
                self._count("starting" if not begun else f"line {_lines(self.folder)}")
                run = _start(self.settings, self.folder)
        self._victims(run)
        return _wait(run, LIMIT_S)

    def _victims(self, run: subprocess.Popen[bytes]) -> dict[int, str]:
        """The processes that may be killed, with their names; all processes of the run are noted."""
        own = descendants(run.pid)
        self._own |= own.keys()
        return {pid: name for pid, name in own.items() if name.startswith(self.title)}

    def _count(self, place: str) -> None:
        self.kills += 1
        self.places[place] += 1

    def _got_ahead(self, run: subprocess.Popen[bytes], seen: int) -> bool:
        """Wait until the run has more than `seen` lines; False if it ends or hangs."""
        deadline = time.monotonic() + LIMIT_S
        while run.poll() is None and time.monotonic() < deadline:
            if (self.folder / "config.yaml").exists() and _lines(self.folder) > seen:
                return True
            time.sleep(0.05)
        return False


def _lines(folder: Path) -> int:
    """How many lines of metrics the run has written."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _start(settings: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run in the folder, or goes on with it."""
    begun = (folder / "config.yaml").exists()
    arguments = ["resume", str(folder)] if begun else ["train", str(settings), "--run-dir", str(folder)]
    with (folder.parent / f"{folder.name}.output").open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "vapo", *arguments], stdout=output, stderr=output, start_new_session=True
        )


def _wait(run: subprocess.Popen[bytes], limit_s: float) -> int:
    """The exit code; one that takes longer is killed."""
    try:
        return run.wait(limit_s)
    except subprocess.TimeoutExpired:
        run.kill()
        return run.wait()


def descendants(pid: int) -> dict[int, str]:
    """The processes that the process has started, directly or not, with their command lines."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)  # noqa: S607
    children: dict[int, list[tuple[int, str]]] = {}
    for line in listed.stdout.splitlines():
        own, parent, command = line.split(None, 2)
        children.setdefault(int(parent), []).append((int(own), command))
    found, waiting = dict[int, str](), [pid]
    while waiting:
        for child, command in children.get(waiting.pop(), []):
            found[child] = command
            waiting.append(child)
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
