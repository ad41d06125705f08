"""How a network learns from a batch: passes, minibatches, one optimizer step each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vapo.trainer.batch import Batch, minibatches
from vapo.trainer.network import Gradient, Network

OF_RIGHT = ("loss/positive_lm",)
"""Figures that are means over right responses, and 0 of a minibatch without any."""

Attempt = Callable[[Callable[..., Gradient], Batch], Gradient]


@dataclass(frozen=True)
class Update:
    """What passes over a batch did: figures averaged over the gradient steps (those of right responses over the steps
    that had some), and the minibatches whose steps were skipped."""

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
    begun: Gradient | None = None,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Update:
    """`passes` passes over the batch in `parts` gradient steps each; `generator(i)` shuffles pass i.

    `attempt` calls the work it is given with the batch and `micro_batch_tokens`, again with fewer where memory ran out.
    `begun` is the gradient of the first minibatch, where the network holds it already. `prepare` adds to a minibatch
    what is too large to be in the whole batch. A minibatch without a trainable token makes no step.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, int] = defaultdict(int)
    taken = 0
    bad: list[Batch] = []
    for number in range(passes):
        for index, minibatch in enumerate(minibatches(batch, parts, generator(number))):
            if not bool(minibatch.mask.any()):
                continue
            if begun is not None and number == index == 0:
                gradient = begun
            else:
                learned = minibatch if prepare is None else prepare(minibatch)
                gradient = attempt(network.accumulate, learned)
            result = network.step(lr)
            if not result.taken:
                bad.append(minibatch)
                continue
            taken += 1
            any_right = bool((minibatch.mask.any(-1) & minibatch.right).any())
            for key, value in {**gradient.figures, **result.figures}.items():
                sums[key] += value
                counts[key] += any_right or key not in OF_RIGHT
    return Update({key: value / max(1, counts[key]) for key, value in sums.items()}, taken, bad)
