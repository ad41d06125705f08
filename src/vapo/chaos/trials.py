"""The trials: each starts a run, applies a fault, resumes, and compares the result with an undisturbed run."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from subprocess import Popen
from typing import Any

from safetensors.torch import load_file

from vapo.chaos import faults
from vapo.chaos.attempts import AttemptResult, attempt
from vapo.chaos.small_run import AHEAD, differences, fingerprint, long_config, small_config
from vapo.durability.watch import Watch
from vapo.errors import DivergedError, StoppedError, counted
from vapo.session.config import Config
from vapo.trainer import snapshot
from vapo.trainer.loop import train_step
from vapo.trainer.run import Run

SIGTERM_LIMIT_S = 10.0
STOPPED = StoppedError.exit_code
DIVERGED = DivergedError.exit_code
START_LIMIT_S = 60.0
INTERRUPTIONS = 2
"""The number of interruptions of one run."""


@dataclass
class Outcome:
    """`count`: faults that hit a working run; `failures`: one description each; `places`: the run's activity then."""

    count: int = 0
    failures: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    longest_s: float = 0.0
    size: int = 0
    """The number of possible places of the fault, if known."""
    digest: str = ""
    """A hash of the run's fingerprint, for trials that must agree."""

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain data."""
        return asdict(self)


class TrialContext:
    """The common data of trials: a folder, the run's settings, and the results of an undisturbed run."""

    def __init__(self, root: Path, mounted: Path | None, config: Config | None = None) -> None:
        self.root, self.mounted, self.config = root, mounted, config or small_config()
        self._number = 0
        self._calls: dict[bool, list[tuple[str, int]]] = {}
        self.reference = root / "reference"
        started = time.monotonic()
        if attempt(self.reference, self.config).code != 0:
            raise RuntimeError(f"the undisturbed run failed: see {self.reference}.output")
        self.seconds = time.monotonic() - started
        self.expected = fingerprint(self.reference)

    @cached_property
    def long(self) -> TrialContext:
        """The same context with the long run."""
        root = self.root / "long"
        root.mkdir()
        return TrialContext(root, None, long_config())

    @cached_property
    def ahead(self) -> TrialContext:
        """The same context with the small run that samples ahead."""
        root = self.root / "ahead"
        root.mkdir()
        return TrialContext(root, None, small_config(AHEAD))

    def calls(self, again: bool) -> list[tuple[str, int]]:
        """The file-changing system calls of one save, recorded on the first call."""
        if again not in self._calls:
            log = self.root / f"calls-{again}.txt"
            folder = _copy(self, drop=1)
            _save_only(self, folder, again, lambda child: faults.record_syscalls(child, log))
            self.clear(folder)
            self._calls[again] = faults.syscalls_in(log)
        return self._calls[again]

    def folder(self, root: Path | None = None) -> Path:
        """The path for a new run."""
        self._number += 1
        return (root or self.root) / f"run-{self._number}"

    def clear(self, folder: Path) -> None:
        """Remove the run of a trial without failures, and its files beside the folder."""
        shutil.rmtree(folder)
        for path in self.root.glob(folder.name + ".*"):
            path.unlink()

    def add_differences(
        self, folder: Path, ended: AttemptResult, outcome: Outcome, *, without: str | None = None
    ) -> Outcome:
        """Add the differences to the undisturbed run to the outcome, and return it."""
        if ended.code != 0:
            outcome.failures.append(f"{folder}: ended with {ended.code} while {ended.doing}: {ended.output[-500:]}")
            return outcome
        found = differences(self.expected, fingerprint(folder))
        found = [name for name in found if without is None or not name.startswith(without)]
        if found:
            outcome.failures.append(f"{folder}: different {', '.join(found[:5])}")
        return outcome


def undisturbed(context: TrialContext, long: bool) -> Outcome:
    """A run without a fault. A difference here comes from the machine and not from a resume."""
    context = context.long if long else context
    folder = context.folder()
    return _cleared(context, folder, context.add_differences(folder, attempt(folder, context.config), Outcome(count=1)))


def interrupted(context: TrialContext, seed: int, end: int, long: bool = False, ahead: bool = False) -> Outcome:
    """Send two signals at random moments, resume after each, then run to the end."""
    context = context.ahead if ahead else context.long if long else context
    rng, outcome, folder = random.Random(seed), Outcome(), context.folder()  # noqa: S311 - not for secrets
    expected, struck = -end if end == signal.SIGKILL else STOPPED, 0
    while struck < INTERRUPTIONS:
        ended = attempt(folder, context.config, end=signal.Signals(end), after_s=rng.uniform(0, context.seconds))
        if ended.code == 0:
            break
        if ended.code != expected:
            return context.add_differences(folder, ended, outcome)
        struck += 1
        outcome.count += ended.doing != "starting"
        outcome.places[ended.doing] = outcome.places.get(ended.doing, 0) + 1
        outcome.longest_s = max(outcome.longest_s, ended.seconds)
        if end == signal.SIGTERM and ended.seconds > SIGTERM_LIMIT_S:
            outcome.failures.append(f"{folder}: stopped {ended.seconds:.1f} s after SIGTERM, while {ended.doing}")
    else:
        ended = attempt(folder, context.config)
    context.add_differences(folder, ended, outcome)
    return _cleared(context, folder, outcome)


def killed_in_save(context: TrialContext, number: int, traced: bool, again: bool) -> Outcome:
    """Kill the run at the `number`-th change to the disk in one save. `count` is 0 if the save has fewer, and `size` is
    their number.

    The run saves a new step, which replaces the checkpoint before, or with `again` the same step once more.
    """
    folder, outcome = _copy(context, drop=1), Outcome()
    calls = context.calls(again) if traced else None
    if calls is not None:
        outcome.size = len(calls)
        if number > len(calls):
            return _cleared(context, folder, outcome)

    def strike(child: int) -> Popen[str] | None:
        return faults.kill_at_syscall(child, *calls[number - 1]) if calls else None

    ended = _save_only(context, folder, again, strike, None if traced else number)
    outcome.count = int(ended.code == -signal.SIGKILL)
    if calls is not None and not outcome.count:
        outcome.failures.append(f"{folder}: call {number}, {calls[number - 1]}, did not kill the run")
    if ended.code not in (0, -signal.SIGKILL):
        outcome.failures.append(f"{folder}: ended with {ended.code} in the save: {ended.output[-500:]}")
    if outcome.count:
        outcome.places[calls[number - 1][0] if calls else "file operation"] = 1
        context.add_differences(folder, attempt(folder, context.config), outcome)
    return _cleared(context, folder, outcome)


def _save_only(
    context: TrialContext,
    folder: Path,
    again: bool,
    strike: Callable[[int], Popen[str] | None],
    number: int | None = None,
) -> AttemptResult:
    """Resume, take a step unless the same one is saved `again`, save and exit; `strike` runs just before the save."""
    ready, go = os.pipe(), os.pipe()
    tracers: list[Popen[str]] = []

    def save_only(run: Run) -> None:
        run.watch = Watch()  # so that only the save writes files
        if not again:
            run.saving = replace(run.saving, every=0, keep=1)
            run.hand_over()
            train_step(run)
        os.write(ready[1], b"r")
        os.read(go[0], 1)
        if number is not None:
            faults.kill_at_operation(number)
        snapshot.save(run)
        os._exit(0)

    def when_forked(child: int) -> None:
        if not select.select([ready[0]], [], [], START_LIMIT_S)[0]:
            return  # the run ended before the save; its exit code shows why
        if (tracer := strike(child)) is not None:
            tracers.append(tracer)
        os.write(go[1], b"g")

    ended = attempt(folder, context.config, tamper=save_only, when_forked=when_forked)
    for descriptor in (*ready, *go):
        os.close(descriptor)
    for tracer in tracers:
        tracer.communicate()
    return ended


def damaged(context: TrialContext, seed: int) -> Outcome:
    """Damage a file of the newest checkpoint: the run must set it aside and use the one before."""
    rng, outcome, folder = random.Random(seed), Outcome(count=1), _copy(context)  # noqa: S311 - not for secrets
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    what = faults.damage(newest, rng)
    ended = attempt(folder, context.config)
    if not any(p.suffix == ".corrupt" for p in (folder / "checkpoints").iterdir()):
        outcome.failures.append(f"{folder}: {what}, but no checkpoint was set aside")
    context.add_differences(folder, ended, outcome)
    return _cleared(context, folder, outcome)


def disk_full(context: TrialContext, seed: int) -> Outcome:
    """Fill the disk at a random step, for some steps or until the run stops; then free it again."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    folder = context.folder(context.mounted)
    start, steps = rng.randrange(0, 4), rng.choice([1, 2, 9])
    leave = rng.choice([0, 3_000, 200_000, 600_000])
    undo: list[Callable[[], None]] = []

    def tamper(run: Run) -> None:
        seen = 0

        def step(_: dict[str, Any]) -> None:
            nonlocal seen
            seen += 1
            if seen == start + 1:
                undo.append(faults.fill_disk(folder, leave, context.mounted is not None))
            elif seen == start + 1 + steps and undo:
                undo.pop()()

        run.observer.step = step  # type: ignore[method-assign]

    outcome = Outcome()
    ended = attempt(folder, context.config, tamper=tamper, notes=context.root)
    (folder.parent / "ballast").unlink(missing_ok=True)
    events = (folder / "events.jsonl").read_text()
    outcome.count = int(ended.code == STOPPED or "Could not save" in events or "not written" in events)
    if ended.code not in (0, STOPPED):
        return context.add_differences(folder, ended, outcome)
    outcome.places[f"exit code {ended.code}"] = 1
    if ended.code == STOPPED:
        ended = attempt(folder, context.config)
    # the run skips rollout files that do not fit on the disk and logs an event
    context.add_differences(folder, ended, outcome, without="rollouts/")
    return _cleared(context, folder, outcome)


def bad_number(context: TrialContext, learner: str, number: int, what: str, value: str) -> Outcome:
    """Put one non-finite number into one gradient step: the run must skip the step and record it."""
    folder = context.folder()
    spoil = partial(faults.spoil_gradient_step, name=learner, number=number, what=what, value=float(value))
    ended = attempt(folder, context.config, tamper=spoil)
    outcome = Outcome(count=1)
    if ended.code != 0:
        return context.add_differences(folder, ended, outcome)
    found = fingerprint(folder)
    outcome.digest = sha256(repr(sorted(found.items())).encode()).hexdigest()
    if not differences(context.expected, found):
        outcome.failures.append(f"{folder}: {value} in the {what} changed nothing, so the fault was not injected")
    skipped = list((folder / "skipped").glob("*.safetensors")) if (folder / "skipped").exists() else []
    if len(skipped) != 1:
        outcome.failures.append(f"{folder}: {counted(len(skipped), 'skipped gradient step')} instead of 1")
    for name in ("policy", "critic"):
        weights = load_file(folder / name / "model.safetensors")
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            outcome.failures.append(f"{folder}: the {name} has a number that is not finite")
    return _cleared(context, folder, outcome)


def bad_for_good(context: TrialContext, learner: str, what: str) -> Outcome:
    """Make all further gradient steps non-finite: the run must stop with exit code 3."""
    folder = context.folder()
    spoil = partial(faults.spoil_gradient_step, name=learner, number=1, what=what, value=float("nan"), times=10**6)
    ended = attempt(folder, context.config, tamper=spoil)
    outcome = Outcome(count=1)
    if ended.code != DIVERGED:
        outcome.failures.append(f"{folder}: ended with {ended.code} instead of {DIVERGED}: {ended.output[-500:]}")
    return _cleared(context, folder, outcome)


TRIALS: dict[str, Callable[..., Outcome]] = {
    "undisturbed": undisturbed,
    "interrupted": interrupted,
    "killed_in_save": killed_in_save,
    "damaged": damaged,
    "disk_full": disk_full,
    "bad_number": bad_number,
    "bad_for_good": bad_for_good,
}


def _copy(context: TrialContext, drop: int = 0) -> Path:
    """A copy of the undisturbed run, without its `drop` newest checkpoints."""
    folder = context.folder()
    shutil.copytree(context.reference, folder)
    for checkpoint in sorted((folder / "checkpoints").iterdir())[::-1][:drop]:
        shutil.rmtree(checkpoint)
    return folder


def _cleared(context: TrialContext, folder: Path, outcome: Outcome) -> Outcome:
    if not outcome.failures:
        context.clear(folder)
    return outcome
