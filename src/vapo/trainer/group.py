"""The processes that hold one network together, as the network in each of them sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from vapo.models.networks import Critic, Policy
from vapo.models.placing import to_device
from vapo.trainer.batch import Batch, micro_batches

N = TypeVar("N", Policy, Critic)


class Group(Protocol):
    """All of its processes make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process's number, from 0; the first one writes what is not written in parts."""
        ...

    @property
    def size(self) -> int:
        """The number of processes."""
        ...

    def shard(self, network: N) -> N:
        """The network with its weights spread over the group."""
        ...

    def move(self, network: Policy | Critic, to: torch.device) -> None:
        """Move this process's weights of the network and their gradients to a device."""
        ...

    def deal(self, batch: Batch, micro_batch_tokens: int) -> Iterator[Tensor]:
        """The micro-batches of this process as row numbers: as many in every process, where needed with empty ones.

        Rows without a trainable token are left out; each other row is in one process's micro-batches.
        """
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every process's tensor, a CPU tensor of one shape in all; may reuse its memory."""
        ...


class Alone:
    """A group of one process."""

    rank, size = 0, 1

    def shard(self, network: N) -> N:
        """See `Group.shard`."""
        return network

    def move(self, network: Policy | Critic, to: torch.device) -> None:
        """See `Group.move`."""
        to_device(network.model, to)

    def deal(self, batch: Batch, micro_batch_tokens: int) -> Iterator[Tensor]:
        """See `Group.deal`."""
        return micro_batches(batch, micro_batch_tokens)

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Group.sum`."""
        return tensor


ALONE = Alone()


def idle_piece(batch: Batch) -> tuple[Tensor, Batch]:
    """(row numbers, rows): what a process computes in a micro-batch that has no rows for it: its shortest row, learned
    from nowhere."""
    sizes = torch.tensor([len(tokens) for tokens in batch.critic_tokens or batch.tokens])
    row = sizes.argmin()[None]
    micro = batch.select(row)
    return row, micro.unlearned()
