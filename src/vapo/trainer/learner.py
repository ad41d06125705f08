"""One network, its optimizer, and how it learns from a batch. Policy and critic differ in objective only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vapo.trainer.batch import Batch, micro_batches, minibatches
from vapo.trainer.objectives import Objective

Attempt = Callable[[Callable[..., dict[str, Tensor]]], dict[str, Tensor]]


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


class Learner:
    """Accumulates a minibatch's gradient over micro-batches, clips it, and steps AdamW.

    The head and the backbone share one scheduled optimizer (papers.md bug 13). A loss or a gradient that is
    not finite is thrown away and counted; the weights and the moments stay as they were.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        *,
        lr: float,
        weight_decay: float,
        max_grad_norm: float,
        micro_batch_tokens: int,
    ) -> None:
        self.name, self.objective, self.lr = name, objective, lr
        self.max_grad_norm, self.micro_batch_tokens = max_grad_norm, micro_batch_tokens
        trained = [parameter for parameter in objective.module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.999), fused=True)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return self.optimizer.param_groups[0]["params"]

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.parameters[0].device

    def learn(
        self,
        batch: Batch,
        *,
        parts: int,
        passes: int,
        lr: float,
        generator: Callable[[int], torch.Generator],
        attempt: Attempt | None = None,
    ) -> Update:
        """`passes` passes over the batch in `parts` gradient steps each; `generator(i)` shuffles pass i.

        `attempt` calls the work it is given with a token budget, again with a smaller one where memory ran out.
        """
        sums: defaultdict[str, float] = defaultdict(float)
        taken = 0
        bad: list[Batch] = []
        attempt = attempt or (lambda work: work(micro_batch_tokens=self.micro_batch_tokens))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for number in range(passes):
            for minibatch in minibatches(batch, parts, generator(number)):
                if not bool(minibatch.mask.any()):
                    continue
                figures = attempt(partial(self.accumulate, minibatch))
                figures[f"grad_norm/{self.name}"] = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
                # the loss counts too: a token whose loss is not finite can leave a finite gradient behind
                if all(math.isfinite(float(value)) for value in figures.values()):
                    self.optimizer.step()
                    taken += 1
                    for key, value in figures.items():
                        sums[key] += float(value)
                else:
                    bad.append(minibatch)
                self.optimizer.zero_grad(set_to_none=True)
        return Update({key: value / taken for key, value in sums.items()} if taken else {}, taken, bad)

    def accumulate(self, minibatch: Batch, *, micro_batch_tokens: int | None = None) -> dict[str, Tensor]:
        """Leave the minibatch's gradient at the parameters and return its figures.

        The weights are made here, on the whole minibatch; each micro-batch adds its share. So the gradient is
        that of one big batch, whatever the token budget (papers.md bugs 3 and 5).
        """
        self.optimizer.zero_grad(set_to_none=True)  # what a try that ran out of memory has left
        weights = self.objective.weights(minibatch)
        figures: dict[str, Tensor] = {}
        for rows in micro_batches(minibatch, micro_batch_tokens or self.micro_batch_tokens):
            micro = minibatch.select(rows).to(self.device)
            share = {name: w[rows, : micro.width].to(self.device) for name, w in weights.items()}
            loss, parts = self.objective.loss(micro, share)
            loss.backward()
            figures = {key: figures.get(key, 0) + value for key, value in parts.items()}
        return figures
