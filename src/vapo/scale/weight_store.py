"""The policy's weights on their way to the rollout workers: buckets in the cluster's object store.

They are put there once per version, bucket by bucket, and all workers of a machine read the same memory. The driver
never holds a full copy of its own; a sharded trainer may put the buckets there itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

BUCKET_BYTES = 128 << 20
"""Size of a bucket, about: the most that is copied at a time."""

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@runtime_checkable
class HasBuckets(Protocol):
    """Weights that are in the object store already."""

    def weight_buckets(self) -> Iterable[Any]:
        """References to `pack`ed buckets, or the (name, tensor) pairs of one bucket each."""
        ...


@dataclass(frozen=True)
class Packed:
    """A tensor as bytes that the object store shares without a copy."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: np.ndarray[Any, Any]


def pack(weights: Iterable[tuple[str, Tensor]]) -> list[Packed]:
    """A bucket of these tensors."""
    return [_pack(name, tensor) for name, tensor in weights]


def _pack(name: str, tensor: Tensor) -> Packed:
    here = tensor.detach().cpu().contiguous()
    numbers = here.reshape(-1).view(_AS_INTEGERS[here.element_size()]).numpy()  # numpy has no bfloat16
    return Packed(name, str(here.dtype).removeprefix("torch."), tuple(here.shape), numbers)


def unpack(bucket: Sequence[Packed]) -> Iterator[tuple[str, Tensor]]:
    """The bucket's names and tensors, which lie in the object store: read them, never write to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        for packed in bucket:
            flat = torch.from_numpy(packed.numbers).view(getattr(torch, packed.dtype))
            yield packed.name, flat.reshape(packed.shape)


def buckets(weights: Iterable[tuple[str, Tensor]], most: int = BUCKET_BYTES) -> Iterator[list[tuple[str, Tensor]]]:
    """The weights in lists of about `most` bytes."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        here = tensor.numel() * tensor.element_size()
        if bucket and size + here > most:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += here
    if bucket:
        yield bucket


def put_weights(weights: Iterable[tuple[str, Tensor]] | HasBuckets, put: Callable[[list[Packed]], Any]) -> list[Any]:
    """References to the weights' buckets; `put` stores one."""
    given = weights.weight_buckets() if isinstance(weights, HasBuckets) else buckets(weights)
    return [put(pack(bucket)) if _is_pairs(bucket) else bucket for bucket in given]


def _is_pairs(bucket: Any) -> bool:
    return isinstance(bucket, list | tuple)
