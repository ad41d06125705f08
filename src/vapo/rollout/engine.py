"""The protocol of rollout engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vapo.types import Completion, Decoding, Prompt

_GAPS = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_GAP = 0.1


def rounding_gap(dtype: torch.dtype) -> float:
    """The mean difference of two engines' log-probabilities, in nats, above which it is more than rounding."""
    return _GAPS.get(dtype, _LOW_PRECISION_GAP)


class RolloutEngine(Protocol):
    """Samples completions from one known version of the policy."""

    @property
    def exact(self) -> bool:
        """Whether a sample depends on its seed alone, and its `logprobs` are the model's to rounding.

        If not, a repeated call gives other samples of the same distribution.
        """
        ...

    @property
    def version(self) -> int:
        """The version passed to the last `load_weights`."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the policy's weights (named as in its `state_dict`); later completions carry `version`."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        how: Decoding,
        seeds: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; `seeds[i]` alone decides the randomness of completion i.

        Put the samples of one prompt next to each other: equal neighbouring prompts are prefilled once.
        `on_progress(finished, tokens)` is called from time to time with the counts so far.
        """
        ...

    def close(self) -> None:
        """Free memory and processes. The engine cannot be used afterwards."""
        ...
