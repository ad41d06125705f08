"""How many bytes of tensors live at once while code runs, counted on tensors that have shapes and no storage.

The code itself runs, so its shapes, its autograd and the moment at which each tensor is freed are the real ones. What a
kernel takes inside, and what an allocator leaves unused, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def without_storage() -> FakeTensorMode:
    """Within, new tensors have no storage. They claim to be on the CPU, so its kernels are the ones that are chosen:
    as on a GPU, attention never makes the matrix of all pairs of tokens."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class LiveBytes(TorchDispatchMode):
    """Within, `now` is the bytes of tensors made since and still alive, and `peak` the most of that."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {_key(tensor) for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := _key(tensor)) not in self._seen:
                storage = tensor.untyped_storage()
                size = storage.nbytes()
                self._seen.add(key)
                self.now += size
                weakref.finalize(storage, self._freed, key, size).atexit = False
        self.peak = max(self.peak, self.now)
        return result

    def restart(self) -> None:
        """Measure the peak anew."""
        self.peak = self.now

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def drop_gradients(module: torch.nn.Module) -> None:
    """Free each parameter's gradient as soon as it is whole: what is left alive is the rest of a backward pass."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
