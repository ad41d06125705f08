"""The driver's side of training ranks: networks that live in other processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vapo.durability.checkpoint import Entries
from vapo.errors import RankError
from vapo.scale.cluster import RemoteProcess, import_ray
from vapo.scale.rank import Failure, MakeNetworks, NetworkFacts
from vapo.scale.ray_signals import raised_by_signals
from vapo.scale.weight_store import BUCKET_BYTES, unpack
from vapo.trainer.batch import Batch
from vapo.trainer.local_network import computed_sizes, score_flops
from vapo.trainer.network import Gradient, Score, StepResult
from vapo.trainer.spans import Spans

PATIENCE = 0.8
"""Ranks wait for each other for this share of the time limit: those that wait then say so, and the one that hangs is
the one that says nothing."""
GRACE_S = 5.0
"""After one rank failed, the others' answers are awaited so long: they tell who failed first."""


class Ranks:
    """The training ranks of a run. Every call goes to all of them.

    Raises RankError if one dies or does not answer within `limit_s` seconds, and ends all: each holds a part of the
    weights. An error that a run knows (of files, for instance) is raised as it is.
    """

    def __init__(self, processes: Sequence[RemoteProcess], *, limit_s: float) -> None:
        self.processes, self.limit_s = list(processes), limit_s
        self._ray = import_ray()

    def meet(self) -> None:
        """Let the ranks find each other: before anything else."""
        meet = self._answers([self.processes[0].call("meeting_point")], "start")[0]
        joining = [
            process.call("join", rank, len(self.processes), meet, PATIENCE * self.limit_s)
            for rank, process in enumerate(self.processes)
        ]
        self._answers(joining, "meet")

    def build(self, make: MakeNetworks, spans: Spans) -> dict[str, RayNetwork]:
        """Let all ranks make the networks; what the driver uses in their place, by name."""
        facts: dict[str, NetworkFacts] = self.ask("load the networks", "build", make)
        return {name: RayNetwork(name, own, self, spans) for name, own in facts.items()}

    def ask(self, what: str, method: str, *arguments: Any, **named: Any) -> Any:
        """The first rank's answer to a method of `Rank`; `what` it is, for messages."""
        return self._answers([process.call(method, *arguments, **named) for process in self.processes], what)[0]

    def ask_all(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """The answers of all ranks to a method that each ends by itself: after an error the others are awaited."""
        return self._answers([process.call(method, *arguments) for process in self.processes], what, apart=True)

    def share(self, value: Any) -> Any:
        """A reference that stands for the value in arguments: it is stored once for all ranks."""
        return self._ray.put(value)

    def fetch(self, reference: Any) -> Any:
        """The value behind a reference that a rank returned; raises RankError if that rank is gone."""
        errors = self._ray.exceptions
        try:
            with raised_by_signals():
                return self._ray.get(reference, timeout=self.limit_s)
        except (errors.ObjectLostError, errors.GetTimeoutError) as error:
            self.close()
            raise RankError(
                "The weights that a training rank handed out did not arrive: it died, or takes longer than "
                f"{self.limit_s:g} s (scale.answer_limit_s). All training ranks were ended."
            ) from error

    def close(self) -> None:
        """End all ranks. May be called twice."""
        for process in self.processes:
            process.kill()
        self.processes.clear()

    def _answers(self, refs: list[Any], what: str, *, apart: bool = False) -> list[Any]:
        """What all calls returned, in order; `apart` calls do not wait for each other."""
        if not refs:
            raise RankError(f"The training ranks were ended, so they cannot {what}.")
        began = time.monotonic()
        deadline, first_failure_s = began + self.limit_s, None
        waiting, answers = dict(zip(refs, range(len(refs)), strict=True)), [None] * len(refs)
        died, raised, told = dict[int, Exception](), dict[int, Exception](), dict[int, Failure]()
        while waiting and (ready := self._ready(list(waiting), deadline)):
            for ref in ready:
                at = waiting.pop(ref)
                try:
                    with raised_by_signals():
                        answers[at] = answer = self._ray.get(ref)
                except self._ray.exceptions.RayTaskError as error:
                    raised[at] = error
                except self._ray.exceptions.RayError as error:
                    died[at] = error
                else:
                    if not isinstance(answer, Failure):
                        continue
                    told[at] = answer
                    if apart:
                        continue
                if first_failure_s is None:
                    now = time.monotonic()
                    first_failure_s, deadline = now - began, min(deadline, now + GRACE_S)
        if not (waiting or died or raised or told):
            return answers
        silent = sorted(waiting.values())
        early = first_failure_s is not None and first_failure_s < PATIENCE * self.limit_s
        error = self._cause(what, [] if early else silent, died, raised, told)
        if silent or died or raised or isinstance(error, RankError):
            self.close()
        raise error

    def _ready(self, refs: list[Any], deadline: float) -> list[Any]:
        with raised_by_signals():
            return self._ray.wait(refs, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))[0]

    def _cause(
        self,
        what: str,
        silent: list[int],
        died: dict[int, Exception],
        raised: dict[int, Exception],
        told: dict[int, Failure],
    ) -> Exception:
        """The error to raise: about the rank that failed by itself, not those that then missed it."""
        if silent:
            names = " and ".join(self.processes[at].describe() for at in silent)
            return RankError(
                f"{_upper(names)} did not answer within {self.limit_s:g} s (scale.answer_limit_s), asked to {what}. "
                "All training ranks were ended."
            )
        if told:
            at, failure = min(told.items())
            if failure.out_of_memory:
                name = self.processes[at].describe()
                return RankError(
                    f"{_upper(name)} ran out of memory, asked to {what} ({failure.error}). Lower "
                    "trainer.micro_batch_tokens or rollout.max_response_tokens, set model.gradient_checkpointing=true, "
                    "or take more ranks (scale.training_ranks).",
                    would_repeat=True,
                )
            return failure.error
        at, error = min((died or raised).items())
        name = _upper(self.processes[at].describe())
        if at in died:
            failed = RankError(f"{name} died, asked to {what}. All training ranks were ended.")
        else:
            failed = RankError(
                f"{name} failed, asked to {what}: {_last_line(error)}. All training ranks were ended.",
                would_repeat=True,
            )
        failed.__cause__ = error
        return failed


class RayNetwork:
    """`vapo.trainer.network.Network` over training ranks, which hold the network in parts."""

    def __init__(self, name: str, facts: NetworkFacts, ranks: Ranks, spans: Spans) -> None:
        self.name, self.origin, self.reads = name, facts.origin, facts.reads
        self.checkpoint_bytes, self.published_bytes = facts.checkpoint_bytes, facts.published_bytes
        self.ranks, self._facts, self._spans = ranks, facts, spans

    def score(self, batch: Batch, what: Sequence[Score], *, micro_batch_tokens: int) -> dict[str, Tensor]:
        """See `Network.score`."""
        lengths, responses = computed_sizes(batch, for_critic=self._facts.for_critic)
        flops = score_flops(self._facts.flops, what, lengths, responses)
        with self._spans.time(f"score/{self.name}", tokens=sum(lengths), flops=flops):
            return self._compute("score", batch, tuple(what), micro_batch_tokens=micro_batch_tokens)

    def accumulate(self, minibatch: Batch, *, micro_batch_tokens: int) -> Gradient:
        """See `Network.accumulate`; where memory does not suffice, RankError."""
        lengths, responses = computed_sizes(minibatch, for_critic=self._facts.for_critic)
        flops = self._facts.flops.update(lengths, responses)
        with self._spans.time(f"update/{self.name}", tokens=sum(lengths), flops=flops):
            return self._compute("accumulate", minibatch, micro_batch_tokens=micro_batch_tokens)

    def step(self, lr: float) -> StepResult:
        """See `Network.step`."""
        with self._spans.time(f"update/{self.name}"):
            return self._call("step", lr)

    def start_at(self, value: float) -> bool:
        """See `Network.start_at`."""
        return self._call("start_at", value)

    def weights(self, *, merged: bool = True) -> RankWeights:
        """See `Network.weights`: fetched bucket by bucket, so that the driver never holds all of them."""
        return RankWeights(self, merged)

    def copy_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See `Network.copy_weights`. Those of another network of the same ranks are copied there."""
        if isinstance(weights, RankWeights) and weights.network.ranks is self.ranks and not weights.merged:
            self.ranks.ask(f"copy weights to the {self.name}", "copy", self.name, weights.network.name)
        else:
            self._call("copy_weights", list(weights))

    def save(self, folder: Path) -> Entries:
        """See `Network.save`: each rank writes its own part, with adapters the first one all."""
        known: Entries = {}
        for entries in self.ranks.ask_all(f"save the {self.name}", "save", self.name, folder.absolute()):
            known |= entries
        return known

    def load(self, folder: Path) -> None:
        """See `Network.load`."""
        self._call("load", folder.absolute())

    def publish(self, folder: Path) -> None:
        """See `Network.publish`."""
        self._call("publish", folder.absolute())

    def publish_adapters(self, folder: Path) -> bool:
        """See `Network.publish_adapters`."""
        return self._call("publish_adapters", folder.absolute())

    def release(self) -> None:
        """See `Network.release`."""
        self._call("release")

    def _call(self, method: str, *arguments: Any) -> Any:
        return self.ranks.ask(self._words(method), "call", self.name, method, arguments, {})

    def _compute(self, method: str, batch: Batch, *arguments: Any, **named: Any) -> Any:
        tensors = self.ranks.share(batch.tensors())
        return self.ranks.ask(self._words(method), "compute", self.name, method, tensors, *arguments, **named)

    def _words(self, method: str) -> str:
        return f"{method} the {self.name}"


class RankWeights:
    """An iterator over a network's weights, which knows whose they are. Use one at a time, and to its end."""

    def __init__(self, network: RayNetwork, merged: bool) -> None:
        self.network, self.merged = network, merged
        self._tensors = self._fetched()

    def __iter__(self) -> RankWeights:
        return self

    def __next__(self) -> tuple[str, Tensor]:
        return next(self._tensors)

    def weight_buckets(self) -> Iterator[Any]:
        """References to packed buckets, for engines in other processes: the weights never come to the driver."""
        name, ranks = self.network.name, self.network.ranks
        ranks.ask(f"hand out the {name}'s weights", "begin_weights", name, merged=self.merged)
        while (bucket := ranks.ask(f"hand out the {name}'s weights", "next_weights", BUCKET_BYTES)) is not None:
            yield bucket

    def _fetched(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.weight_buckets():
            yield from unpack(self.network.ranks.fetch(bucket))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
