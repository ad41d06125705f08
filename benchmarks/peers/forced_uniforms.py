"""Responses of given lengths in our engine, by the random numbers that it draws tokens with. The engine is untouched.

The stop token is the vocabulary's last one. The largest uniform below 1 draws it; below .9 of the total nothing does,
as long as it has less than a tenth of the probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vapo.rollout import draws, torch_engine

LAST = 1.0 - 2.0**-53


def force_lengths(lengths: Mapping[int, int]) -> None:
    """From now on a sample with one of these seeds has so many tokens."""

    def uniforms(seeds: Sequence[int], count: int, device: torch.device | None = None) -> Tensor:
        drawn = draws.uniforms(seeds, count, device) * 0.9
        ends = torch.tensor([lengths[seed] - 1 for seed in seeds], device=device)
        return drawn.scatter_(1, ends[:, None], LAST)

    torch_engine.uniforms = uniforms
