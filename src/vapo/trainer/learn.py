"""How a network learns from a batch: passes, minibatches, one optimizer step each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from vapo.trainer.batch import Batch, minibatches
from vapo.trainer.network import Network

Attempt = Callable[[Callable[..., dict[str, float]]], dict[str, float]]


@dataclass(frozen=True)
class Update:
    """What passes over a batch did: figures averaged over the gradient steps, and the minibatches whose steps were
    skipped."""

    figures: dict[str, float]
    gradient_steps: int
    bad: list[Batch] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Gradient steps that were not taken."""
        return len(self.bad)


def learn(
    network: Network,
    batch: Batch,
    *,
    parts: int,
    passes: int,
    lr: float,
    generator: Callable[[int], torch.Generator],
    attempt: Attempt,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Update:
    """`passes` passes over the batch in `parts` gradient steps each; `generator(i)` shuffles pass i.

    `attempt` calls the work it is given with `micro_batch_tokens`, again with fewer where memory ran out. A minibatch
    without a trainable token makes no step. `prepare` adds what is too large to be in the whole batch.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    taken = 0
    bad: list[Batch] = []
    for number in range(passes):
        for minibatch in minibatches(batch, parts, generator(number)):
            if not bool(minibatch.mask.any()):
                continue
            learned = minibatch if prepare is None else prepare(minibatch)
            figures = attempt(partial(network.accumulate, learned))
            result = network.step(lr)
            if not result.taken:
                bad.append(minibatch)
                continue
            taken += 1
            for key, value in {**figures, **result.figures}.items():
                sums[key] += value
    return Update({key: value / taken for key, value in sums.items()} if taken else {}, taken, bad)
