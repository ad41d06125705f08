"""Every sampled token scored once, before any update."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vapo.trainer.batch import Batch
from vapo.trainer.network import Network, Score


def score(
    batch: Batch,
    *,
    policy: Network | None = None,
    critic: Network | None = None,
    reference: Network | None = None,
    final_values: bool = False,
    reads: tuple[Score, ...] = (),
    micro_batch_tokens: int,
) -> Batch:
    """The batch with `old_logp`, `entropy`, `old_values`, `ref_logp` of the networks given.

    `reads` is what a critic wants to find of the policy in the batch (`Network.reads`). `final_values` adds the
    critic's value after the last token, for responses that bootstrap. Rows without a trainable token are not scored;
    their numbers are 0.
    """
    scored: dict[str, Tensor] = {}
    if policy is not None:
        scores = policy.score(batch, ("logp", "entropy", *reads), micro_batch_tokens=micro_batch_tokens)
        scored |= {"old_logp": scores["logp"], "entropy": scores["entropy"]}
        if "features" in scores:
            # the critic reads them when it scores and when it learns, both before the policy's update
            batch = replace(batch, features=scores["features"].split([len(tokens) for tokens in batch.tokens]))
    if critic is not None:
        what = ("values", "final_values") if final_values else ("values",)
        scores = critic.score(batch, what, micro_batch_tokens=micro_batch_tokens)
        scored["old_values"] = scores["values"]
        if final_values:
            scored["final_values"] = scores["final_values"]
    if reference is not None:
        scored["ref_logp"] = reference.score(batch, ("logp",), micro_batch_tokens=micro_batch_tokens)["logp"]
    return replace(batch, **scored)
