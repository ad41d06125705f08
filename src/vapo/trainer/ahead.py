"""The next step's responses, sampled while the trainer learns from this step's.

While joint step s + 1 is trained, a thread samples and judges the responses of step s + 2, from the weights of step s.
So a step learns from responses of the weights before the last update; the first step, and the first after a rollback,
from the newest. Values, log-probabilities and advantages are computed when a rollout is used. A checkpoint keeps the
rollout that waits for the next step: the weights that sampled it are gone by then.

In value pretraining the policy is fixed. Nothing is stale there, and a resume samples the same responses again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Event

import torch

from vapo.algo.method import Gae
from vapo.errors import AbandonedError
from vapo.trainer.rollouts import Rollout
from vapo.trainer.run import Run
from vapo.trainer.sources import FixedPolicySource, SynchronousSource
from vapo.trainer.state import State


class RolloutThread:
    """Makes one rollout at a time in a thread with so many CPU `threads`; what it raises is raised by `take`.

    `may_stop` says whether a stop of the run drops what is being sampled.
    """

    def __init__(self, run: Run, threads: int, *, may_stop: bool) -> None:
        self._run, self._threads, self._may_stop = run, threads, may_stop
        self._executor: ThreadPoolExecutor | None = None
        self._closing = Event()
        self._job: Future[Rollout] | None = None

    def begin(self, sample: Callable[[State], Rollout], state: State) -> None:
        """Let the thread call `sample(state)`."""
        if self._executor is None:
            self._closing.clear()
            # torch keeps grad mode, autocast and the number of threads for each thread by itself
            self._executor = ThreadPoolExecutor(1, "rollout", torch.set_num_threads, (self._threads,))
        self._job = self._executor.submit(sample, state)

    def settle(self) -> None:
        """Wait until it has ended, well or not."""
        if self._job is not None:
            wait([self._job])

    def take(self) -> Rollout | None:
        """The rollout that was begun, when it is ready; None if none was. An error is raised at each call."""
        if self._job is None:
            return None
        rollout, self._job = self._job.result(), None
        return rollout

    def failed(self) -> bool:
        """Whether what was begun ended in an error, which `take` will raise; waits until it has ended."""
        self.settle()
        return self._job is not None and self._job.exception() is not None

    def forget(self) -> None:
        """Wait until it has ended, and drop it."""
        self.settle()
        self._job = None

    def close(self) -> None:
        """Drop what is being sampled, and end the thread; `begin` starts another."""
        self._closing.set()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        self._executor = self._job = None

    def progress(self, what: str, done: int, total: int | None) -> None:
        """`Run.progress` for this thread."""
        self._run.watch.beat(what)
        self._run.observer.progress(what, done, total)
        if self._closing.is_set() or (self._may_stop and self._run.stop_requested):
            raise AbandonedError


class AheadSource:
    """Samples the following joint step's responses in another thread, which has the engine between `next` and
    `settle`."""

    max_age = 1

    def __init__(self, run: Run, *, threads: int) -> None:
        self._run = run
        # a stop waits for the rollout, since its weights are not saved
        self._thread = RolloutThread(run, threads, may_stop=False)
        self._here = SynchronousSource(run)
        self._there = SynchronousSource(run, progress=self._thread.progress)
        self._waiting: Rollout | None = None
        """Made ahead for the next step."""

    def next(self, state: State) -> Rollout:
        """The rollout of the step that follows `state`; the one after it is begun. See `RolloutSource`."""
        if self._run.stop_requested:
            raise AbandonedError
        rollout = self._thread.take() or self._waiting or self._here.next(state)
        self._waiting = None
        if state.step + 1 < self._run.settings.steps:
            following = replace(state.copy(), step=state.step + 1, prompts_seen=rollout.prompts_seen)
            self._thread.begin(self._there.next, following)
        return rollout

    def settle(self) -> None:
        """See `RolloutSource`."""
        self._thread.settle()

    def waiting(self) -> Rollout | None:
        """See `RolloutSource`. None where sampling failed: the finished step is saved before `next` raises that."""
        if not self._thread.failed():
            self._waiting = self._thread.take() or self._waiting
        return self._waiting

    def restart(self, waiting: Rollout | None) -> None:
        """See `RolloutSource`."""
        self._thread.forget()
        self._waiting = waiting

    def close(self) -> None:
        """See `RolloutSource`."""
        self._thread.close()


class FixedPolicyAheadSource:
    """Samples the following pretraining step's responses in another thread: those that `FixedPolicySource` gives."""

    max_age = 0

    def __init__(self, run: Run, *, threads: int) -> None:
        self._run = run
        self._thread = RolloutThread(run, threads, may_stop=True)
        self._here = FixedPolicySource(run)
        self._there = FixedPolicySource(run, progress=self._thread.progress)
        self._begun = -1
        """The steps that come before the one that was begun."""

    def next(self, state: State) -> Rollout:
        """The responses of pretraining step `state.pretrain_step + 1`; those of the one after it are begun."""
        rollout = self._thread.take()
        if rollout is None or self._begun != state.pretrain_step:
            rollout = self._here.next(state)
        credit = self._run.algorithm.credit
        self._begun = state.pretrain_step + 1
        if isinstance(credit, Gae) and self._begun < credit.pretraining_steps:
            self._thread.begin(self._there.next, replace(state.copy(), pretrain_step=self._begun))
        return rollout

    def at(self, step: int, state: State) -> Rollout:
        """See `PretrainingSource`."""
        self._thread.forget()
        return self._here.at(step, state)

    def heldout(self, state: State) -> Rollout:
        """See `PretrainingSource`."""
        self._thread.forget()
        return self._here.heldout(state)

    def close(self) -> None:
        """See `PretrainingSource`."""
        self._thread.close()
