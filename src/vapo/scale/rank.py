"""A training rank: a process that holds a part of every network's weights, and does with them what the driver asks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from vapo.durability.checkpoint import Entries
from vapo.errors import VapoError
from vapo.models.model_flops import ModelFlops
from vapo.models.networks import Critic
from vapo.scale.sharding import RankGroup
from vapo.scale.supervised import SupervisedActor
from vapo.scale.weight_store import pack
from vapo.trainer.batch import Batch
from vapo.trainer.group import Group
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.memory import out_of_memory
from vapo.trainer.network import Score

P = ParamSpec("P")
R = TypeVar("R")
MakeNetworks = Callable[[Group], Mapping[str, LocalNetwork]]
"""Makes the networks, by name, in a rank; the driver sends it."""


@dataclass(frozen=True)
class NetworkFacts:
    """What the driver keeps of a network that ranks hold."""

    origin: str
    reads: tuple[Score, ...]
    checkpoint_bytes: int
    published_bytes: int
    flops: ModelFlops
    for_critic: bool


@dataclass(frozen=True)
class Failure:
    """An error that a call ended with, where the process goes on."""

    error: Exception
    out_of_memory: bool = False


def _told(method: Callable[P, R]) -> Callable[P, R | Failure]:
    """The method, which returns a `Failure` for an error that the driver is to raise itself. Any other is a fault,
    whose traceback it shows."""

    @wraps(method)
    def told(*arguments: P.args, **named: P.kwargs) -> R | Failure:
        try:
            return method(*arguments, **named)
        except Exception as error:
            if out_of_memory(error):
                return Failure(MemoryError(str(error).split("\n")[0]), out_of_memory=True)
            if isinstance(error, VapoError | OSError | SafetensorError):
                return Failure(error)
            raise

    return told


class Rank(SupervisedActor):
    """The process. All ranks get the same calls in the same order, and answer alike; the first one's answer counts."""

    def __init__(self) -> None:
        super().__init__()
        self._group: RankGroup | None = None
        self._networks: Mapping[str, LocalNetwork] = {}
        self._weights: Iterator[tuple[str, Tensor]] = iter(())

    def meeting_point(self) -> str:
        """An address at which the ranks can meet, if this is the first of them."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, rank: int, size: int, meet: str, limit_s: float) -> None:
        """Meet the other ranks."""
        self._group = RankGroup(rank, size, meet, limit_s=limit_s)

    @_told
    def build(self, make: MakeNetworks) -> dict[str, NetworkFacts]:
        """Make the networks, in the place of earlier ones."""
        assert self._group is not None
        self._networks = make(self._group)
        return {name: _facts(network) for name, network in self._networks.items()}

    @_told
    def call(self, network: str, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result of a method of a network, None in all ranks but the first."""
        answer = getattr(self._networks[network], method)(*arguments, **named)
        return answer if self._first else None

    def compute(self, network: str, method: str, batch: dict[str, Tensor], *arguments: Any, **named: Any) -> Any:
        """`call` of a method whose first argument is a batch, which comes as `Batch.tensors`."""
        return self.call(network, method, (Batch.from_tensors(batch), *arguments), named)

    @_told
    def save(self, network: str, folder: Path) -> Entries:
        """See `Network.save`: the digests of the files that this process wrote."""
        return self._networks[network].save(folder)

    @_told
    def copy(self, network: str, source: str) -> Any:
        """Copy one network's weights to another of the same shape."""
        weights = self._networks[source].model.state_dict().items()
        return self.call(network, "copy_weights", (weights,), {})

    @_told
    def begin_weights(self, network: str, *, merged: bool) -> None:
        """Begin to hand out a network's weights: `next_weights`."""
        self._weights = self._networks[network].weights(merged=merged)

    @_told
    def next_weights(self, most_bytes: int) -> Any:
        """A reference to the next bucket of whole weights, packed (`vapo.scale.weight_store`); None after the last.

        It has `most_bytes` or a little more. Only the first rank keeps and stores it.
        """
        bucket, size = list[tuple[str, Tensor]](), 0
        for name, tensor in self._weights:
            size += tensor.numel() * tensor.element_size()
            bucket.append((name, tensor.detach().cpu() if self._first else torch.empty(0)))
            if size >= most_bytes:
                break
        if not self._first or not bucket:
            return None
        import ray

        return ray.put(pack(bucket))

    @property
    def _first(self) -> bool:
        return self._group is not None and self._group.rank == 0


def _facts(network: LocalNetwork) -> NetworkFacts:
    return NetworkFacts(
        origin=network.origin,
        reads=network.reads,
        checkpoint_bytes=network.checkpoint_bytes,
        published_bytes=network.published_bytes,
        flops=network.flops,
        for_critic=isinstance(network.network, Critic),
    )
