"""The policy's hidden states of value pretraining's responses, computed once for all replays.

The policy is fixed during value pretraining, so what a side critic reads of a response never changes. Each response is
computed alone: its states then have the same bits in whatever batch it is drawn, kept or computed again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vapo.trainer.batch import Batch
from vapo.trainer.network import Network

ALONE = 1
"""A budget of tokens that lets every response stand alone in its forward pass."""


class FeatureCache:
    """Keeps hidden states, at most `limit` bytes of them; the first come stay, the others are computed each time."""

    def __init__(self, policy: Network, limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._kept: dict[bytes, Tensor] = {}
        self.size = 0
        """Bytes that are kept."""
        self.computed = 0
        """Responses that went through the policy so far."""

    def with_features(self, batch: Batch) -> Batch:
        """The batch with `features` of every response that is learned from; those of the others are 0."""
        keys = [tokens.numpy().tobytes() for tokens in batch.tokens]
        wanted = [row for row in batch.mask.any(-1).nonzero()[:, 0].tolist() if keys[row] not in self._kept]
        missing = list({keys[row]: row for row in wanted}.values())
        found = dict(zip([keys[row] for row in missing], self._compute(batch, missing), strict=True))
        for key, states in found.items():
            size = states.numel() * states.element_size()
            if self.size + size <= self._limit:
                self._kept[key] = states
                self.size += size
        rows = [found.get(key, self._kept.get(key)) for key in keys]
        if (first := next((states for states in rows if states is not None), None)) is None:
            return batch  # nothing here is learned from
        empty = [states if states is not None else first.new_zeros(len(tokens), first.shape[1])
                 for states, tokens in zip(rows, batch.tokens, strict=True)]  # fmt: skip
        return replace(batch, features=tuple(empty))

    def _compute(self, batch: Batch, rows: list[int]) -> list[Tensor]:
        if not rows:
            return []
        self.computed += len(rows)
        chosen = batch.select(torch.tensor(rows))
        flat = self._policy.score(chosen, ("features",), micro_batch_tokens=ALONE)["features"]
        # a piece of the whole would hold the memory of all
        return [states.clone() for states in flat.split([len(tokens) for tokens in chosen.tokens])]
