"""Attention within the segments of a packed row by torch's flash kernel: half precision on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

try:  # torch 2.11 and later; earlier versions have it in another form
    from torch.nn.attention.varlen import varlen_attn

    _PARAMETERS = inspect.signature(varlen_attn).parameters
except ImportError:
    varlen_attn = None
    _PARAMETERS = {}

HALF = (torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 256


def available() -> bool:
    """Whether this torch has the kernel in the form that is used here."""
    return {"window_size", "scale"} <= _PARAMETERS.keys()


def takes(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the kernel computes this attention: on a GPU, in half precision (autocast's included), no dropout."""
    return (
        value.is_cuda
        and _dtype(value) in HALF
        and query.shape[-1] == value.shape[-1] <= MOST_HEAD_DIM
        and dropout == 0
        and available()
    )


def segment_ends(sequences: Sequence[Tensor]) -> Tensor | None:
    """Where each sequence ends in the packed row, with a 0 before, (n + 1,) int32; None away from a GPU."""
    if not sequences[0].is_cuda:
        return None
    lengths = torch.tensor([0, *(len(s) for s in sequences)], dtype=torch.int32)
    return lengths.cumsum(0, dtype=torch.int32).to(sequences[0].device, non_blocking=True)


def attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention within each segment: (1, heads, tokens, dim) -> (1, tokens, heads, dim).

    `ends` is `segment_ends`, `longest` the most tokens of a segment, `window` how many tokens a query sees, itself
    included.
    """
    assert varlen_attn is not None
    dtype = _dtype(value)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    options = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in _PARAMETERS:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    left = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(left, 0), **options)
    assert isinstance(out, Tensor)
    return out[None]


def _dtype(value: Tensor) -> torch.dtype:
    """The dtype that attention is computed in."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
