"""The durability suite: the faults, the number of trials of each, and the table of results."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vapo.chaos import faults
from vapo.errors import ConfigError, VapoError, counted
from vapo.json_text import json_text
from vapo.session.environment import environment

CONFIDENCE = 0.95
ALL = 10_000
"""A number larger than the number of system calls of any save."""
WHERE = ("critic", "policy")
GRADIENT_STEPS = {"critic": 10, "policy": 6}
"""The number of gradient steps of the small run, by network, that get a bad number; the run has a few more."""
KINDS = {"critic": ("loss", "gradient", "returns"), "policy": ("loss", "gradient", "advantages", "old_logp")}
VALUES = ("nan", "inf", "-inf")
CONTROLS = 2
"""The number of undisturbed runs that are compared as controls."""


@dataclass
class Fault:
    """One row of the table."""

    name: str
    wanted: int
    trials: Iterator[dict[str, Any]]
    count: int = 0
    failures: list[str] = field(default_factory=list)
    places: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    agree: dict[str, set[str]] = field(default_factory=dict)
    calls: int = 0
    ended: bool = False

    @property
    def size(self) -> int:
        """The number of planned faults, as far as it is known."""
        return self.calls or (self.wanted if self.wanted < ALL else self.count + 1)

    @property
    def bound(self) -> float:
        """95 % upper bound of the probability that one such fault causes a failure (Clopper-Pearson)."""
        return upper_bound(len(self.details), self.count)

    @property
    def details(self) -> list[str]:
        """One description per failure."""
        return [*self.failures, *self.disagreements()]

    def add(self, trial: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Add a trial's outcome."""
        self.count += outcome["count"]
        self.failures += outcome["failures"]
        self.places.update(outcome["places"])
        self.longest_s = max(self.longest_s, outcome["longest_s"])
        if digest := outcome["digest"]:
            self.agree.setdefault(f"{trial['learner']} {trial['number']}", set()).add(digest)
        # the number of system calls of a save is unknown at first: the first number beyond it has no effect
        if trial["trial"] == "killed_in_save":
            self.calls = max(self.calls, outcome["size"])
            self.ended = self.ended or (trial["number"] >= self.calls if self.calls else not outcome["count"])

    def disagreements(self) -> list[str]:
        """The gradient steps where different bad numbers led to different results."""
        return [
            f"{place}: {counted(len(found), 'different run')}" for place, found in self.agree.items() if len(found) > 1
        ]

    def row(self, folder: Path) -> dict[str, Any]:
        """The row as plain data. Its details name failed runs by their place in `folder`, the suite's own."""
        return {
            "fault": self.name,
            "trials": self.count,
            "failures": len(self.details),
            "bound": self.bound,
            "places": dict(self.places.most_common()),
            "longest_s": round(self.longest_s, 2),
            "details": [detail.replace(f"{folder}/", "") for detail in self.details],
        }


def upper_bound(failures: int, trials: int) -> float:
    """The one-sided 95 % Clopper-Pearson upper bound; 1 without trials.

    >>> round(upper_bound(0, 120), 4)
    0.0247
    """
    if failures >= trials:
        return 1.0
    low, high = failures / trials, 1.0
    for _ in range(60):  # bisection: P(at most `failures` | p) decreases in p; find where it is 5 %
        middle = (low + high) / 2
        chance = sum(_binomial(trials, i, middle) for i in range(failures + 1))
        low, high = (middle, high) if chance > 1 - CONFIDENCE else (low, middle)
    return high


def plan(*, quick: bool, seed: int, traced: bool) -> list[Fault]:
    """All faults with their trials."""
    share = 10 if quick else 1

    def seeds(trial: str, **more: Any) -> Iterator[dict[str, Any]]:
        return ({"trial": trial, "seed": seed * 1_000_003 + i, **more} for i in itertools.count())

    numbers = [
        {"trial": "bad_number", "learner": learner, "number": number, "what": what, "value": value}
        for number in range(1, max(GRADIENT_STEPS.values()) + 1)
        for learner in WHERE
        if number <= GRADIENT_STEPS[learner]
        for what in KINDS[learner]
        for value in VALUES
    ]
    if quick:
        numbers = [n for n in numbers if n["number"] == 3]
    stride = 17 if quick else 1

    def every_call(again: bool) -> Iterator[dict[str, Any]]:
        return (
            {"trial": "killed_in_save", "number": i, "traced": traced, "again": again}
            for i in itertools.count(1, stride)
        )

    for_good = [
        {"trial": "bad_for_good", "learner": x, "what": what}
        for x, what in (("critic", "loss"), ("policy", "gradient"))
    ]
    kill = int(signal.SIGKILL)
    what = "system call" if traced else "file operation that Python sees"
    return [
        Fault("nothing, to compare (long run)", CONTROLS, iter([{"trial": "undisturbed", "long": True}] * CONTROLS)),
        Fault("killed at a random moment (long run)", 30 // share, seeds("interrupted", end=kill, long=True)),
        Fault("killed at a random moment", 120 // share, seeds("interrupted", end=kill)),
        Fault("killed while it samples ahead", 30 // share, seeds("interrupted", end=kill, ahead=True)),
        Fault(f"killed at every {what} of a save", ALL, every_call(False)),
        Fault("the same, of a step saved again", ALL, every_call(True)),
        Fault("a checkpoint's file damaged", 50 // share, seeds("damaged")),
        Fault("disk full", 30 // share, seeds("disk_full")),
        Fault("SIGTERM at a random moment", 100 // share, seeds("interrupted", end=int(signal.SIGTERM))),
        Fault("SIGTERM while it samples ahead", 20 // share, seeds("interrupted", end=int(signal.SIGTERM), ahead=True)),
        Fault("one number not finite", len(numbers), iter(numbers)),
        Fault("numbers not finite any more", len(for_good), iter(for_good)),
    ]


def named(rows: Sequence[Fault], fault: str) -> list[Fault]:
    """The rows whose name contains `fault`, in small or capital letters. ConfigError if there is none."""
    found = [row for row in rows if fault.lower() in row.name.lower()]
    if not found:
        names = "; ".join(row.name for row in rows)
        raise ConfigError(f"There is no fault called {fault!r}. The faults are: {names}.")
    return found


class ForkServer:
    """A process that forks trials; requests and answers go through pipes."""

    def __init__(self, root: Path, mount: bool) -> None:
        root.mkdir(parents=True)
        prefix = ["unshare", "-rm"] if mount else []
        command = [*prefix, sys.executable, "-m", "vapo.chaos.fork_server", str(root), *(["mount"] if mount else [])]
        self._log = (root / "fork_server.log").open("w")
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._root = root
        self.seconds = self._answer()["ready"]

    def run(self, trial: dict[str, Any]) -> dict[str, Any]:
        """Run one trial and return its outcome."""
        assert self._process.stdin is not None
        self._process.stdin.write(json_text(trial) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()  # closes the pipes
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise VapoError(f"A process of the suite ended unexpectedly; see {self._root / 'fork_server.log'}.")
        return json.loads(line)


def mounts_work() -> bool:
    """Whether a process may mount a private tmpfs on this machine."""
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "vapo", tempfile.gettempdir()]
    tried = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - fixed arguments
    return tried.returncode == 0


def run_suite(
    folder: Path,
    *,
    quick: bool,
    jobs: int,
    seed: int,
    on_progress: Callable[[str, int, int], None],
    fault: str = "",
) -> dict[str, Any]:
    """Run the trials of all faults whose name contains `fault` and return the table as plain data.

    Failed runs stay in `folder`. Raises ConfigError if there is no such fault.
    """
    started = time.monotonic()
    traced, mounted = faults.strace_works(), mounts_work()
    rows = named(plan(quick=quick, seed=seed, traced=traced), fault)
    on_progress("starting", 0, 1)
    servers: SimpleQueue[ForkServer] = SimpleQueue()
    alive: list[ForkServer] = []
    try:
        for i in range(jobs):
            alive.append(ForkServer(folder / f"server-{i}", mounted))
            servers.put(alive[-1])
        for row in rows:
            _run_trials(row, servers, jobs, on_progress)
    finally:
        for server in alive:
            server.close()
    return {
        "rows": [row.row(folder) for row in rows],
        "seconds": round(time.monotonic() - started),
        "seed": seed,
        "quick": quick,
        "traced": traced,
        "real disk": mounted,
        "environment": environment(),
        "one run takes s": round(max(z.seconds for z in alive), 2),
    }


def _run_trials(
    row: Fault, servers: SimpleQueue[ForkServer], jobs: int, on_progress: Callable[[str, int, int], None]
) -> None:
    """Run trials of one row on all servers until enough faults have occurred."""
    lock, errors = threading.Lock(), []

    def work() -> None:
        server = servers.get()
        try:
            while True:
                with lock:
                    trial = None if row.ended or row.count >= row.wanted or errors else next(row.trials, None)
                if trial is None:
                    return
                outcome = server.run(trial)
                with lock:
                    row.add(trial, outcome)
                    on_progress(row.name, row.count, row.size)
        except Exception as error:
            errors.append(error)
        finally:
            servers.put(server)

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def faults_table(result: dict[str, Any]) -> str:
    """The results as a Markdown table, with a line about the machine."""
    lines = ["| fault | trials | failures | 95 % bound | struck while |", "|---|--:|--:|--:|---|"]
    for row in result["rows"]:
        places = ", ".join(f"{place} {count}" for place, count in row["places"].items())
        lines.append(f"| {row['fault']} | {row['trials']} | {row['failures']} | {row['bound']:.1%} | {places} |")
    machine = result["environment"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}; torch "
    lines += ["", f"On {where}{machine['packages']['torch']}, {machine['platform']}; seed {result['seed']}."]
    return "\n".join(lines)


def _binomial(n: int, k: int, p: float) -> float:
    return comb(n, k) * p**k * (1 - p) ** (n - k)
