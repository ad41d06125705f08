"""A group of training ranks: its processes hold each network in parts (FSDP2) and each compute a share of the rows.

What is sharded: every weight. Each decoder layer is gathered when its forward or backward pass comes and given up after
it; embeddings, output layer and the rest are one more unit, gathered for a whole pass, because the log-probabilities
read the output layer's weight by themselves and embeddings may share it. Gradients and the optimizer's moments are
sharded like the weights. Buffers are replicated.

With model.dtype=bfloat16 layers are gathered in bfloat16, as autocast would round them, and their norms with them.

Gradients are summed, not averaged: a loss is a sum over tokens whose weights were made on the whole minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from vapo.errors import ModelError
from vapo.models.backbone import decoder_layers
from vapo.models.networks import Critic, Policy
from vapo.models.side import SideModel
from vapo.scale.dealing import deal
from vapo.trainer.batch import Batch

N = TypeVar("N", Policy, Critic)
WHOLE = MixedPrecisionPolicy()
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
"""Weights are gathered in bfloat16, half as many bytes, and gradients are summed in float32. What passes between layers
stays as autocast has it in one process."""


class RankGroup:
    """`vapo.trainer.group.Group` over torch.distributed. CPU tensors go through gloo, those of GPUs through NCCL.

    `meet` is where the processes find each other: tcp://HOST:PORT. They must meet within `limit_s`, and no exchange
    takes longer.
    """

    def __init__(self, rank: int, size: int, meet: str, *, limit_s: float = 600.0) -> None:
        self.rank, self.size = rank, size
        on_gpu = torch.cuda.is_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            meet,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=limit_s),
        )
        self.mesh = init_device_mesh("cuda" if on_gpu else "cpu", (size,))

    def shard(self, network: N) -> N:
        """See `Group.shard`."""
        return replace(network, passes=ShardedPass(network.model, self.mesh, half=network.autocast).run)

    def move(self, network: Policy | Critic, to: torch.device) -> None:
        """See `Group.move`."""
        sharded = getattr(network.passes, "__self__")  # noqa: B009 - the method's object
        assert isinstance(sharded, ShardedPass)
        sharded.to(to)  # through all units, which note where their shards are now

    def deal(self, batch: Batch, micro_batch_tokens: int) -> Iterator[Tensor]:
        """See `Group.deal`."""
        return iter(deal(batch, self.size, micro_batch_tokens)[self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Group.sum`."""
        tensor = tensor.contiguous()
        dist.all_reduce(tensor)
        return tensor

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def reads_half(unit: nn.Module) -> bool:
    """Whether a unit has weights of linear layers and of norms only. Autocast rounds the former to bfloat16 anyway; a
    recurrence or a router may need all digits of its own."""
    own = [module for module in unit.modules() if next(module.parameters(recurse=False), None) is not None]
    plain = all(isinstance(module, nn.Linear) or "norm" in type(module).__name__.lower() for module in own)
    return plain and not isinstance(unit, ShardedPass)


class ShardedPass(nn.Module):
    """Shards a model in place, and runs whatever calls its parts as one forward pass.

    FSDP gathers weights when a module is called. Policy and critic call a backbone and read the output layer, never
    the whole model, so this module stands above the model as the one that is called.
    """

    def __init__(self, model: PreTrainedModel, mesh: DeviceMesh, *, half: bool = False) -> None:
        super().__init__()
        self.model = model
        for unit in [*_layers(model), self]:
            sharded = fully_shard(unit, mesh=mesh, mp_policy=HALF if half and reads_half(unit) else WHOLE)
            assert isinstance(sharded, FSDPModule)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def forward(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What `work` returns. FSDP calls this with the weights outside of layers gathered."""
        return work(*arguments)

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `work(*arguments)`, which calls parts of the model."""
        result = self(work, arguments)
        if not torch.is_grad_enabled():
            # no backward pass will; weights that stay gathered would miss the next step
            assert isinstance(self, FSDPModule)
            self.reshard()
        return result


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The units that are gathered one at a time; none in a side critic, and where layers stand in no one list."""
    if isinstance(model, SideModel):
        return []
    try:
        return list(decoder_layers(model))
    except ModelError:
        return []
