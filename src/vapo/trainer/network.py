"""The protocol by which the loop uses a network. The loop never uses a module, so a network may be in another process.

`LocalNetwork` implements it in this process. A network split over several processes implements it too: it takes the
same minibatches and computes the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from vapo.durability.checkpoint import Entries
from vapo.trainer.batch import Batch

Score = Literal["logp", "entropy", "features", "values", "final_values"]
"""What a network computes for sampled tokens: a policy the first three, a critic the last two."""


@dataclass(frozen=True)
class Gradient:
    """What `accumulate` tells beside the gradient that it leaves in the network."""

    figures: dict[str, float]
    """Loss terms and diagnostics by name, of the whole minibatch."""
    values: Tensor | None = None
    """A critic's V of every learned token (B, T), 0 elsewhere; None of a policy and of a reward model."""


@dataclass(frozen=True)
class StepResult:
    """Whether an optimizer step was taken, and its figures (`grad_norm/NAME`, before clipping)."""

    taken: bool
    figures: dict[str, float]


class Network(Protocol):
    """A policy, a critic or a reference. Tensors in, tensors and figures out; all tensors are on the CPU."""

    @property
    def name(self) -> str:
        """`policy`, `critic` or `reference`: the name of its files, figures and alarms."""
        ...

    @property
    def origin(self) -> str:
        """What its weights were loaded from, for people to read."""
        ...

    @property
    def reads(self) -> tuple[Score, ...]:
        """What a critic wants to find in the batch of what the policy says; it asks the policy itself for what is not
        there. A side critic's `features`, else nothing."""
        ...

    def score(self, batch: Batch, what: Sequence[Score], *, micro_batch_tokens: int) -> dict[str, Tensor]:
        """The network's scores of every response token, by name: (B, T) each; `final_values` is (B,).

        `logp` and `entropy` are in nats at the sampling temperature, values in units of reward. `final_values` is the
        value after the last token. `features` are the policy's hidden states that a side critic reads, one row per
        token of prompts and responses, end to end. Rows without a trainable token are 0: they are not computed.
        """
        ...

    def accumulate(self, minibatch: Batch, *, micro_batch_tokens: int) -> Gradient:
        """Leave the minibatch's gradient in the network, and say what the pass found.

        All sums are normalised over the whole minibatch, so `micro_batch_tokens` (most tokens computed at a time)
        changes memory and speed, not the gradient. An earlier gradient is dropped first: a call that ran out of memory
        can be made again. Raises torch.OutOfMemoryError, MemoryError or RuntimeError where memory does not suffice.
        """
        ...

    def step(self, lr: float) -> StepResult:
        """Clip the gradient and take one optimizer step with this learning rate, or none; drop the gradient.

        The step is taken if the loss and the gradient are finite, whatever the diagnostics are. If it is not taken,
        weights and optimizer stay as they are, in every process.
        """
        ...

    def start_at(self, value: float) -> bool:
        """Let a critic whose head has learned nothing answer `value`, in units of reward; False if it has learned."""
        ...

    def weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors: for a rollout engine with adapters merged into the weights they adapt, for a network of
        the same shape as they are."""
        ...

    def copy_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the `weights` of another network of the same shape, adapters apart."""
        ...

    def save(self, folder: Path) -> Entries:
        """Write weights and optimizer into a checkpoint folder, in files that begin with the network's name; the
        digests of those files that their processes have read already.

        Of a network with adapters these are the weights, and its base is not written.
        """
        ...

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, exactly; raises CheckpointError if it does not fit."""
        ...

    def publish(self, folder: Path) -> None:
        """Write the finished network as a Hugging Face folder, with its tokenizer; adapters are merged."""
        ...

    def publish_adapters(self, folder: Path) -> bool:
        """Write the finished network's adapters as a PEFT folder; False if it has none, or if peft
        would make another model of them."""
        ...

    def release(self) -> None:
        """Leave the device to others until the next call, with all networks that take turns with this one; where none
        do, nothing happens."""
        ...

    @property
    def checkpoint_bytes(self) -> int:
        """About how many bytes `save` writes."""
        ...

    @property
    def published_bytes(self) -> int:
        """About how many bytes `publish` writes."""
        ...
