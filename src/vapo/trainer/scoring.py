"""Every sampled token scored once, before any update."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vapo.models.networks import Critic, Policy
from vapo.trainer.batch import Batch, micro_batches


@torch.no_grad()
def score(
    batch: Batch,
    *,
    policy: Policy | None,
    critic: Critic | None,
    reference: Policy | None = None,
    final_values: bool = False,
    micro_batch_tokens: int,
) -> Batch:
    """The batch with `old_logp`, `entropy`, `old_values`, `ref_logp` of the networks given.

    `final_values` adds the critic's value after the last token, for responses that bootstrap. Rows without a
    trainable token are not scored; their numbers are 0.
    """
    scored: dict[str, Tensor] = {}

    def put(name: str, rows: Tensor, part: Tensor) -> None:
        whole = scored.setdefault(name, torch.zeros(len(batch), *[batch.width] * (part.ndim - 1)))
        if part.ndim == 1:
            whole[rows] = part.cpu()
        else:
            whole[rows, : part.shape[1]] = part.cpu()

    device = next(n.model.device for n in (policy, critic, reference) if n is not None)

    for rows in micro_batches(batch, micro_batch_tokens):
        micro = batch.select(rows).to(device)
        sequences, width = micro.sequences, micro.width
        if policy is not None:
            logp, entropy = policy.logp(sequences, width, with_entropy=True)
            assert entropy is not None
            put("old_logp", rows, logp)
            put("entropy", rows, entropy)
        if critic is not None:
            put("old_values", rows, critic.values(sequences, width))
            if final_values:
                put("final_values", rows, critic.final_values(sequences))
        if reference is not None:
            put("ref_logp", rows, reference.logp(sequences, width)[0])
    return replace(batch, **scored)
