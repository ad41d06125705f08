"""How the rows of a minibatch are dealt to training ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vapo.trainer.batch import Batch, micro_batches


def deal(batch: Batch, ranks: int, micro_batch_tokens: int) -> list[list[Tensor]]:
    """The micro-batches of every rank, as row numbers: as many on each, at the end with empty ones where needed.

    Each row with a trainable token is on one rank. The minibatch stays whole: its weights are made on all of its rows,
    so who computes a row alters rounding only. Each micro-batch has at most `micro_batch_tokens` tokens; a longer row
    is alone.
    """
    sizes = [len(tokens) for tokens in batch.critic_tokens or batch.tokens]
    useful = batch.mask.any(-1).nonzero()[:, 0].tolist()
    owners = balanced([sizes[row] for row in useful], ranks)
    dealt = [
        list(micro_batches(batch, micro_batch_tokens, torch.tensor([useful[i] for i in own], dtype=torch.long)))
        for own in owners
    ]
    most = max(len(pieces) for pieces in dealt)
    empty = torch.zeros(0, dtype=torch.long)
    return [pieces + [empty] * (most - len(pieces)) for pieces in dealt]


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of the sizes in `parts` parts with sums as equal as can be found quickly, each in ascending order.

    The longest comes first and goes to the part with the smallest sum: no sum exceeds 4/3 of the best largest one.

    Source: Graham 1969, Bounds on Multiprocessing Timing Anomalies, theorem 2.
    """
    sums = [0] * parts
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(parts), key=lambda part: (sums[part], len(dealt[part]), part))
        dealt[least].append(index)
        sums[least] += sizes[index]
    return [sorted(part) for part in dealt]
