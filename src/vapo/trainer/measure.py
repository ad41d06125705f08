"""The figures of one step, under the names in docs/metrics.md."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo.algo import explained_variance, masked
from vapo.trainer.batch import Batch

DECILES = 10


def rollout_figures(batch: Batch) -> dict[str, float]:
    """What was sampled and how it was judged. Invalid verdicts count only towards `verdict/invalid_ratio`."""
    valid = batch.valid
    nan = torch.tensor(float("nan"))
    lengths = batch.response_lengths[valid].float()
    some = bool(valid.any())
    outcomes = batch.outcomes[valid]
    return {
        "reward": float(outcomes.mean()) if len(outcomes) else float("nan"),
        "reward_std": float(outcomes.std(correction=0)) if len(outcomes) else float("nan"),
        "accuracy": float(batch.right[valid].float().mean()) if len(outcomes) else float("nan"),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min() if some else nan),
        "completions/max_length": float(lengths.max() if some else nan),
        "completions/mean_length_right": float(batch.response_lengths[batch.right].float().mean()),
        "completions/clipped_ratio": float(batch.truncated[valid].float().mean()),
        "verdict/invalid_ratio": float((~valid).float().mean()),
        "groups/mixed_ratio": _mixed_groups(batch),
    }


def scoring_figures(batch: Batch, gamma: float = 1.0) -> dict[str, float]:
    """Figures from the networks' scores of the sampled tokens, before any update."""
    mask = batch.mask
    figures: dict[str, float] = {}
    if batch.old_logp is not None and mask.any():
        gap = (batch.old_logp - batch.sampled_logp)[mask].abs()
        figures["sampler/logp_gap_max"] = float(gap.max())
        figures["sampler/logp_gap_mean"] = float(gap.mean())
    if batch.entropy is not None and mask.any():
        figures["entropy"] = float(batch.entropy[mask].mean())
    if batch.ref_logp is not None and batch.old_logp is not None and mask.any():
        # k1: the plain mean of log π - log π_ref over samples of π
        figures["kl"] = float((batch.old_logp - batch.ref_logp)[mask].mean())
    if batch.advantages is not None and mask.any():
        advantages = batch.advantages[mask]
        figures["advantages/mean"] = float(advantages.mean())
        figures["advantages/std"] = float(advantages.std(correction=0))
    if batch.lam is not None and mask.any():
        lam = batch.lam.expand(len(batch))[mask.any(-1)]
        figures["gae/lambda_mean"] = float(lam.mean())
        figures["gae/lambda_median"] = float(lam.median())
        figures["gae/lambda_min"] = float(lam.min())
    if batch.old_values is not None and mask.any():
        figures.update(value_figures(batch.old_values, batch.outcomes, mask, gamma))
    return figures


def value_figures(values: Tensor, outcomes: Tensor, mask: Tensor, gamma: float = 1.0) -> dict[str, float]:
    """Calibration of V against the outcomes: explained variance and bias, whole and by relative position.

    Always against the Monte-Carlo outcome, never against the critic's own bootstrap target, so that methods
    with different critic λ can be compared. Decile 0 is the first tenth of each response.
    """
    values = masked(values, mask)
    position = mask.cumsum(-1) - 1
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    returns = masked(outcomes[:, None] * gamma ** (lengths - 1 - position), mask)
    decile = (position * DECILES // lengths).clamp(0, DECILES - 1)
    figures = {
        "value/explained_variance": float(explained_variance(values, returns, mask)),
        "value/mean": float(values[mask].mean()),
        "value/bias": float((values - returns)[mask].mean()),
    }
    for d in range(DECILES):
        part = mask & (decile == d)
        some = bool(part.any())
        figures[f"value/explained_variance_by_position/{d}"] = float(explained_variance(values, returns, part))
        figures[f"value/bias_by_position/{d}"] = float((values - returns)[part].mean()) if some else float("nan")
    return figures


def _mixed_groups(batch: Batch) -> float:
    """Share of prompts with both right and wrong responses among the valid ones."""
    groups = batch.groups[batch.valid]
    if not len(groups):
        return float("nan")
    count = torch.zeros(int(batch.groups.max()) + 1).index_add(0, groups, torch.ones(len(groups)))
    right = torch.zeros_like(count).index_add(0, groups, batch.right[batch.valid].float())
    seen = count > 0
    return float(((right > 0) & (right < count))[seen].float().mean())
