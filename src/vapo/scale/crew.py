"""Workers of one kind that are started, given work, watched and replaced.

Everything about processes goes through two small protocols, so the same code runs over Ray's actors and over stubs.
One thread at a time may use a crew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vapo.errors import ConfigError, EngineError
from vapo.scale.fleet import Fleet, Health
from vapo.scale.restarts import RestartBudget

TICK_S = 0.25
"""Seconds between two looks at what is running."""
BEAT_S = 1.0
"""Seconds between two questions to a busy worker how far it is; more with many workers."""
BEATS_PER_S = 100
"""Such questions per second at most, to all workers together."""


class WorkerLostError(Exception):
    """A call has no answer because its process is gone; the text says how."""


class Process(Protocol):
    """A process that answers calls."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin a call; what it returns goes to the backend."""
        ...

    def describe(self) -> str:
        """Its name for messages."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...


class Backend(Protocol):
    """Waits for calls."""

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """Those that have ended, as soon as there is one, or at the end of the time none."""
        ...

    def result(self, call: Any) -> Any:
        """The result of a call that has ended; raises WorkerLostError, or what the call raised."""
        ...


@dataclass
class Job:
    """A call that runs."""

    worker: int
    life: int
    kind: str
    """`start`, `load`, `work`, or `drop` for work that nobody waits for any more."""
    limit_s: float
    work: Any = None
    ticket: int = 0
    heard: float = field(default_factory=time.monotonic)
    """When it was last seen to get ahead."""
    progress: tuple[int, ...] = ()
    beat: Any = None
    """The question that is on its way."""
    asked: float = field(default_factory=time.monotonic)


class Crew:
    """`size` workers; see the module.

    `spawn(number)` starts a process. `begin(number, process)` and `hand_over(process)` begin the calls that make it
    ready and give it the current version; both answer with the version that it then has. Work is the call
    `process.call(method, ticket, *arguments)`; `process.call("stop", ticket)` ends it early, and `process.call("beat")`
    tells numbers that grow while it gets ahead.
    """

    def __init__(
        self,
        size: int,
        *,
        backend: Backend,
        spawn: Callable[[int], Process],
        begin: Callable[[int, Process], Any],
        hand_over: Callable[[Process], Any],
        restarts: RestartBudget,
        answer_limit_s: float,
        start_limit_s: float | None = None,
    ) -> None:
        self.size, self.fleet = size, Fleet(size)
        self._backend, self._spawn, self._begin, self._hand_over = backend, spawn, begin, hand_over
        self._restarts, self._limit_s = restarts, answer_limit_s
        self._start_limit_s = start_limit_s or answer_limit_s
        self._processes: list[Process | None] = [None] * size
        self._jobs: dict[Any, Job] = {}
        self._tickets = 0
        self._started = False
        self._lost: list[Any] = []
        """Work of workers that were lost, to be done again."""

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start all workers, and wait until they are ready.

        Raises what a start raises, and ConfigError if a process ends or hangs meanwhile: its successor would, too.
        """
        for worker in range(self.size):
            self._launch(worker)
        self._wait_for("start")
        self._started = True

    def publish(self, version: int) -> None:
        """Give all workers the new version. Those that are being started meanwhile get it before they are used."""
        self._wait_for("drop")  # a worker does one thing at a time
        self.fleet.publish(version)
        for worker in range(self.size):
            self._load_if_stale(worker)
        try:
            self._wait_for("load")
        except BaseException:  # such as weights that do not fit: the other workers will say the same
            self._drop("load")
            raise

    def _wait_for(self, kind: str) -> None:
        while any(job.kind == kind for job in self._jobs.values()):
            self._look()

    def close(self) -> None:
        """End all processes."""
        self._jobs.clear()
        for worker, process in enumerate(self._processes):
            if process is not None:
                process.kill()
                self._processes[worker] = None

    # ------------------------------------------------------------------ work

    def work(
        self,
        method: str,
        take: Callable[[], tuple[Any, tuple[Any, ...]] | None],
        keep: Callable[[Any, Any], None],
        lost: Callable[[Any, str], None],
        on_tick: Callable[[list[tuple[int, ...]]], None] | None = None,
    ) -> None:
        """Deal out work until there is none left, and everything that was dealt is done.

        A free worker gets the work and the arguments that `take` returns, until it returns None. `keep(work, result)`
        gets what is done; `lost(work, why)` the work of a worker that was lost, which may be dealt again; `on_tick` the
        beats of all busy workers. What that one raises ends the work: the workers stop at their next beat.

        Raises EngineError if no worker is left, as after an error of the budget of restarts.
        """
        try:
            while True:
                for work, why in self._take_lost():
                    lost(work, why)
                exhausted = self._deal(method, take)
                if exhausted and not any(job.kind == "work" for job in self._jobs.values()):
                    return
                if not self._jobs:
                    raise EngineError(
                        "No worker is left that could go on: processes were lost more often than they may be started "
                        "again (scale.restarts)."
                    )
                for job, result in self._look():
                    keep(job.work, result)
                if on_tick:
                    on_tick([job.progress for job in self._jobs.values() if job.kind == "work"])
        except BaseException:
            self._drop_work()
            raise

    def _deal(self, method: str, take: Callable[[], tuple[Any, tuple[Any, ...]] | None]) -> bool:
        """Give work to the free workers; whether there was none left for one of them."""
        busy = {job.worker for job in self._jobs.values()}
        for worker in self.fleet.usable():
            if worker in busy:
                continue
            taken = take()
            if taken is None:
                return True
            work, arguments = taken
            self._tickets += 1
            process = self._processes[worker]
            assert process is not None
            call = process.call(method, self._tickets, *arguments)
            self._jobs[call] = Job(worker, self.fleet.life(worker), "work", self._limit_s, work, self._tickets)
        return False

    def _take_lost(self) -> list[tuple[Any, str]]:
        found, self._lost = self._lost, []
        return found

    def _drop_work(self) -> None:
        """Nobody waits for what is being done: the workers may stop. They are used again when they have."""
        for job in self._drop("work"):
            process = self._processes[job.worker]
            assert process is not None
            process.call("stop", job.ticket)
        self._lost.clear()

    def _drop(self, kind: str) -> list[Job]:
        dropped = [job for job in self._jobs.values() if job.kind == kind]
        for job in dropped:
            job.kind, job.work, job.heard = "drop", None, time.monotonic()
        return dropped

    # ------------------------------------------------------------------ what happened

    def _look(self) -> list[tuple[Job, Any]]:
        """Wait a moment for what is running; the work that was done."""
        if not self._jobs:
            return []
        done = []
        for call in self._backend.wait(list(self._jobs), TICK_S):
            job = self._jobs.pop(call, None)
            if job is None:  # its worker was lost a moment ago
                continue
            try:
                result = self._backend.result(call)
            except WorkerLostError as error:
                self._lose(job, str(error))
                continue
            except Exception:
                if job.kind == "drop":  # such as the stop itself
                    continue
                raise
            if job.kind == "start":
                self.fleet.ready(job.worker, job.life, result)
                self._load_if_stale(job.worker)
            elif job.kind == "load":
                self.fleet.handed_over(job.worker, job.life, result)
                self._load_if_stale(job.worker)
            elif job.kind == "work":
                done.append((job, result))
        self._watch()
        return done

    def _watch(self) -> None:
        """Ask busy workers how far they are; a worker that gets no further is lost."""
        now, pause = time.monotonic(), max(BEAT_S, len(self._jobs) / BEATS_PER_S)
        beats = {job.beat: job for job in self._jobs.values() if job.beat is not None}
        for beat in self._backend.wait(list(beats), 0) if beats else ():
            job, job_beat = beats[beat], beat
            job.beat = None
            try:
                progress = self._backend.result(job_beat)
            except Exception:  # the call itself tells it better
                progress = job.progress
            if progress != job.progress:
                job.progress, job.heard = progress, now
        for job in list(self._jobs.values()):
            if now - job.heard > job.limit_s and self.fleet.current(job.worker, job.life):
                limit = " (scale.answer_limit_s)" if job.limit_s == self._limit_s else ""
                self._lose(job, f"it did not get ahead for {job.limit_s:g} s{limit}")
            elif job.kind == "work" and job.beat is None and now - job.asked > pause:
                process = self._processes[job.worker]
                if process is not None:
                    job.beat, job.asked = process.call("beat"), now

    def _lose(self, job: Job, why: str) -> None:
        """The worker of this call is gone, or is ended because it hangs; start it again."""
        if not self.fleet.lost(job.worker, job.life):
            return
        process = self._processes[job.worker]
        assert process is not None
        name = process.describe()
        process.kill()
        if not self._started:
            raise ConfigError(f"The {name} did not start: {why}.")
        self._processes[job.worker] = None
        calls = [call for call, other in self._jobs.items() if other.worker == job.worker]
        jobs = [job, *(self._jobs.pop(call) for call in calls)]
        works = {id(each): each.work for each in jobs if each.kind == "work"}
        self._lost += [(work, why) for work in works.values()]
        self._restarts.spend(name, why, "its share is done again" if works else "")
        self._launch(job.worker)

    def _launch(self, worker: int) -> None:
        life = self.fleet.begin(worker)
        process = self._processes[worker] = self._spawn(worker)
        self._jobs[self._begin(worker, process)] = Job(worker, life, "start", self._start_limit_s)

    def _load_if_stale(self, worker: int) -> None:
        if self.fleet.health(worker) is Health.STALE:
            process = self._processes[worker]
            assert process is not None
            self._jobs[self._hand_over(process)] = Job(worker, self.fleet.life(worker), "load", self._limit_s)
