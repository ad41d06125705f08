"""Kills processes of small runs on Ray, and counts the runs whose results differ from an undisturbed one.

A run is a process of its own here, as a user starts it. Trials come one after the other, since each has a Ray of its
own (some ten seconds); they are few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vapo.chaos.small_run import differences, fingerprint, small_config
from vapo.chaos.suite import upper_bound
from vapo.session.environment import environment
from vapo.types import Progress

SCALED: dict[str, Any] = {
    "scale": {"backend": "ray", "training_ranks": 2, "rollout_workers": 2, "verifier_workers": 1, "restarts": 3}
}
KILLED = {
    "rollout worker killed": "ray::RolloutWorker",
    "verifier worker killed": "ray::VerifierWorker",
    "training rank killed": "ray::Rank",
    "driver killed, then resumed": "",
}
"""The rows, and how the processes are called; the driver is the process that was started."""
TRIALS, QUICK = 20, 2
LIMIT_S = 300.0
"""Seconds after which a run counts as hanging."""
ORPHANS_S = 20.0
"""Seconds within which the processes of a run that has ended must be gone."""


def run_scale_suite(work: Path, *, quick: bool, seed: int, on_progress: Progress) -> dict[str, Any]:
    """Carry out all trials, and return the rows with the machine, like `run_suite`."""
    chance, trials = random.Random(seed), QUICK if quick else TRIALS  # noqa: S311 - chance, not secrets
    settings = work / "scaled.yaml"
    settings.write_text(small_config(SCALED).to_yaml())
    began = time.monotonic()
    calm = work / "undisturbed"
    code = _wait(_start(settings, calm), LIMIT_S)
    if code != 0:
        raise RuntimeError(f"the undisturbed run ended with code {code}; its output is in {calm}.output")
    whole, expected = time.monotonic() - began, fingerprint(calm)
    training = time.time() - (calm / "config.yaml").stat().st_mtime
    rows, done = [], 0
    for name, title in KILLED.items():
        failures, longest = [], 0.0
        for number in range(trials):
            on_progress("scale", done, trials * len(KILLED))
            folder = work / f"{name.split()[0]}-{number}"
            start = time.monotonic()
            # a process that is lost while the run starts ends the start, with an error; a driver may die then, too
            moment = chance.uniform(0.1, 0.9) * (training if title else whole)
            failures += _trial(settings, folder, title, moment, expected)
            longest, done = max(longest, time.monotonic() - start), done + 1
        rows.append(
            {
                "fault": name,
                "trials": trials,
                "failures": len(failures),
                "bound": upper_bound(len(failures), trials),
                "places": {},
                "longest_s": round(longest, 2),
                "details": failures,
            }
        )
    return {"environment": environment(), "seed": seed, "rows": rows}


def _trial(settings: Path, folder: Path, title: str, after_s: float, expected: dict[str, Any]) -> list[str]:
    """What went wrong in a run of which a process is killed after so many seconds; nothing if it ended as it should.

    The seconds of a worker count from when the run's folder begins.
    """
    run = _start(settings, folder)
    deadline = time.monotonic() + LIMIT_S
    while title and not (folder / "config.yaml").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(after_s)
    own = descendants(run.pid)
    victims = [run.pid] if not title else [pid for pid, command in own.items() if command.startswith(title)]
    for pid in victims[:1]:
        os.kill(pid, signal.SIGKILL)
    code = _wait(run, LIMIT_S)
    if not title:
        code = 0 if (folder / "policy").exists() else _wait(_start(None, folder), LIMIT_S)
    failures = []
    if code != 0:
        failures.append(f"{folder}: exit code {code}")
    elif different := differences(expected, fingerprint(folder)):
        failures.append(f"{folder}: different {', '.join(different[:5])}")
    deadline = time.monotonic() + ORPHANS_S
    while (left := [pid for pid in own if _lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        failures.append(f"{folder}: {len(left)} of its processes live on")
    return failures


def _start(settings: Path | None, folder: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run in the folder, or that begins it or goes on with it."""
    begun = (folder / "config.yaml").exists()
    arguments = ["resume", str(folder)] if settings is None and begun else [
        "train", str(settings or folder.parent / "scaled.yaml"), "--run-dir", str(folder)]  # fmt: skip
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
