"""A few of a model's weights, to know the model again by: a side critic keeps those of the policy that it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from vapo.models.lora import plain_weights

MOST = 64
"""Weights in a sample."""


@torch.no_grad()
def weight_sample(model: PreTrainedModel) -> list[float]:
    """One weight out of the middle of each tensor, of `MOST` tensors at most, evenly spaced by name; adapters count as
    added to the weights they adapt."""
    middle = {
        name: float(tensor.flatten()[tensor.numel() // 2])
        for name, tensor in plain_weights(model)
        if tensor.is_floating_point() and tensor.numel()
    }
    names = sorted(middle)
    return [middle[names[i * len(names) // min(MOST, len(names))]] for i in range(min(MOST, len(names)))]


def same_sample(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two samples are those of the same weights, up to the rounding of adapters that were merged.

    The bound is near that of float32, so that a single step at a rate of 1e-6 is told apart.
    """
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8) for a, b in zip(one, other, strict=True)
    )


def in_bfloat16(sample: Sequence[float]) -> list[float]:
    """The sample of the same weights in bfloat16: a run with `model.dtype: bfloat16-weights` keeps only these."""
    return torch.tensor(sample, dtype=torch.float32).bfloat16().tolist()
