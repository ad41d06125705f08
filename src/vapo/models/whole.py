"""Sharded models: whole tensors of shards, and shards of whole tensors.

A model is sharded if its parameters are DTensors, of which every process of a group holds a part. What is said here of
a sharded model must be done by all its processes together, in one order: they exchange parts. A plain model passes
through unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Pass = Callable[..., Any]
"""Runs a forward pass: (function, arguments) -> what the function returns."""


def plain_pass(work: Callable[..., Any], *arguments: Any) -> Any:
    """The pass of a model that is whole: the function itself."""
    return work(*arguments)


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of the tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, in each of its processes; itself where it is whole."""
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """The part that this process holds; the tensor itself where it is whole."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def rows_of(tensor: Tensor, size: int) -> list[int]:
    """Where the rows of each of `size` processes begin, and after them the number of rows.

    FSDP2 gives each process as many rows, and the last ones fewer or none. The first process is to write what is not
    sharded: to it belong all rows, one of a number.
    """
    count = tensor.shape[0] if tensor.ndim else 1
    if not is_sharded(tensor):
        return [0] + [count] * size
    each = -(-count // size)
    return [min(count, each * rank) for rank in range(size + 1)]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor, whole in this process, sharded as `like` is; itself where it is sharded or `like` is whole. Nothing
    is exchanged."""
    if is_sharded(tensor) or not is_sharded(like):
        return tensor
    mesh = cast(Any, like).device_mesh
    bounds, rank = rows_of(like, mesh.size()), mesh.get_local_rank()
    # a part may be a view, which would keep the whole tensor in memory
    return part_like(tensor[bounds[rank] : bounds[rank + 1]].clone(), like)


def part_like(part: Tensor, like: Tensor) -> Tensor:
    """The sharded tensor of which this is the process's part, spread as the sharded `like` is."""
    from torch.distributed.tensor import DTensor

    other = cast(DTensor, like)
    return DTensor.from_local(
        part.to(other.device),
        other.device_mesh,
        other.placements,
        run_check=False,
        shape=other.shape,
        stride=other.stride(),
    )


@contextmanager
def gathered(model: nn.Module, first: bool, *, write_back: bool = False) -> Iterator[None]:
    """Within: in the `first` process the parameters are plain, whole tensors on the CPU; the others only help.

    For code that reads or writes files of whole models. `write_back` shards what the first process made of them. The
    others hold one whole tensor at a time, the first one the whole model.
    """
    places: defaultdict[nn.Parameter, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and is_sharded(parameter):
                places[parameter].append((module, name))
    plain: dict[nn.Parameter, nn.Parameter] = {}
    for parameter in places:
        tensor = whole(parameter.detach())
        if first:
            plain[parameter] = nn.Parameter(tensor.cpu(), requires_grad=parameter.requires_grad)
    _place(places, plain)
    try:
        yield
    finally:
        _place(places, {parameter: parameter for parameter in places})
    if write_back:
        _scatter(list(places), plain)


def _place(places: dict[nn.Parameter, list[tuple[nn.Module, str]]], new: dict[nn.Parameter, nn.Parameter]) -> None:
    for parameter, spots in places.items():
        for module, name in spots:
            module._parameters[name] = new.get(parameter, parameter)


@torch.no_grad()
def _scatter(parameters: list[nn.Parameter], plain: dict[nn.Parameter, nn.Parameter]) -> None:
    """Give every process its part of the first one's whole tensors."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for parameter in parameters:
        shards = cast(DTensor, parameter)
        full = plain[parameter].detach() if parameter in plain else torch.empty(shards.shape, dtype=shards.dtype)
        parameter.copy_(distribute_tensor(full.to(shards.device), shards.device_mesh, shards.placements))
