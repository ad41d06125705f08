"""The figures of one step, under the names in docs/metrics.md."""

from __future__ import annotations

import torch
from torch import Tensor

from vapo.algo import between_share, explained_variance, masked, within_group_auc
from vapo.algo.diagnostics import masked_deviations
from vapo.algo.method import Algorithm, Gae
from vapo.trainer.batch import Batch
from vapo.trainer.credit import alone

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


def scoring_figures(batch: Batch, algorithm: Algorithm) -> dict[str, float]:
    """Figures from the networks' scores of the sampled tokens, before any update."""
    gamma = algorithm.credit.gamma if isinstance(algorithm.credit, Gae) else 1.0
    mask = batch.mask
    figures: dict[str, float] = {}
    if batch.removed is not None and mask.any():
        figures["sampler/removed_ratio"] = float(batch.removed[mask].float().mean())
    if algorithm.sampling.per_prompt > 1 and mask.any():
        learned = mask.any(-1)
        figures["groups/alone_ratio"] = float(alone(batch)[learned].float().mean())
        figures["outcomes/between_share"] = float(between_share(batch.outcomes[learned], batch.groups[learned]))
    if batch.entropy is not None and mask.any():
        figures["entropy"] = float(batch.entropy[mask].mean())
    if batch.ref_logp is not None and batch.old_logp is not None and mask.any():
        # k1: the plain mean of log π - log π_ref over samples of π
        figures["kl"] = float((batch.old_logp - batch.ref_logp)[mask].mean())
    acting = batch.for_policy().mask
    if algorithm.truncated == "drop-from-policy" and mask.any():
        figures["policy/learned_ratio"] = float(acting.any(-1).sum() / mask.any(-1).sum())
    if batch.advantages is not None and acting.any():
        advantages = batch.advantages[acting]
        figures["advantages/mean"] = float(advantages.mean())
        figures["advantages/std"] = float(advantages.std(correction=0))
    if batch.lam is not None and mask.any():
        lam = batch.lam.expand(len(batch))[mask.any(-1)]
        figures["gae/lambda_mean"] = float(lam.mean())
        figures["gae/lambda_median"] = float(lam.median())
        figures["gae/lambda_min"] = float(lam.min())
    if batch.old_values is not None and mask.any():
        figures |= value_figures(batch, gamma)
        if algorithm.sampling.per_prompt > 1 and batch.critic_others_mean is not None:
            figures |= group_figures(batch)
    return figures


def gap_figures(batch: Batch) -> dict[str, float]:
    """How far the sampler's log-probabilities are from those that the policy was just scored with, in nats."""
    assert batch.old_logp is not None
    if not bool(batch.mask.any()):
        return {}
    gap = (batch.old_logp - batch.sampled_logp)[batch.mask].abs()
    return {"sampler/logp_gap_max": float(gap.max()), "sampler/logp_gap_mean": float(gap.mean())}


def group_figures(batch: Batch) -> dict[str, float]:
    """What the critic knows beyond the mean of a response's group.

    `advantages/variance_ratio` compares R - V with R - b, b the leave-one-out mean, over the tokens: both without
    bootstrapping, so that λ has no part in it. `value/within_group_auc` ranks by the critic's mean answer over a
    response; the group's own mean would give the answer away.
    """
    assert batch.old_values is not None
    mask, learned = batch.mask, batch.mask.any(-1)
    values = batch.values  # as the method mixed them with what the group knows
    if values is None or batch.critic_shift is not None:
        values = critic_values(batch)
    values = masked(values, mask)
    answers = masked(batch.old_values, mask)
    outcomes = batch.critic_outcomes
    assert batch.critic_others_mean is not None
    others = batch.critic_others_mean
    _, with_critic = masked_deviations(masked(outcomes[:, None] - values, mask), mask)
    _, with_group = masked_deviations(masked((outcomes - others)[:, None].expand(mask.shape), mask), mask)
    mean_answer = answers.sum(-1) / mask.sum(-1).clamp(min=1)
    figures = {
        "advantages/variance_ratio": float(with_critic / with_group) if float(with_group) > 0 else float("nan"),
        "value/within_group_auc": float(
            within_group_auc(mean_answer[learned], batch.right[learned], batch.groups[learned])
        ),
    }
    if batch.critic_shift is not None:
        figures["value/residual_explained_variance"] = residual_explained_variance(batch)
    return figures


def residual_explained_variance(batch: Batch) -> float:
    """How much a residual critic explains of what the group's mean leaves of the outcomes."""
    assert batch.old_values is not None
    assert batch.critic_shift is not None
    targets = (batch.critic_outcomes - batch.critic_shift)[:, None].expand(batch.mask.shape)
    return float(explained_variance(batch.old_values, targets, batch.mask))


def critic_values(batch: Batch) -> Tensor:
    """The critic's V, (B, T), with the group's mean that a residual critic's target lacks.

    Where a method mixes it with a group's mean, or leaves it out, this is still the critic alone: else its calibration
    would be that of the mean just where the critic is bad.
    """
    assert batch.old_values is not None
    return batch.old_values if batch.critic_shift is None else batch.old_values + batch.critic_shift[:, None]


def value_figures(batch: Batch, gamma: float = 1.0) -> dict[str, float]:
    """Calibration of the critic's V against what happened: explained variance and bias, whole and by relative position.

    Always against the Monte-Carlo outcome, never against the critic's own bootstrap target, so that methods
    with different critic λ can be compared. Decile 0 is the first tenth of each response.
    """
    assert batch.old_values is not None
    mask, outcomes = batch.mask, batch.critic_outcomes
    values = masked(critic_values(batch), mask)
    position = mask.cumsum(-1) - 1
    lengths = mask.sum(-1, keepdim=True).clamp(min=1)
    returns = masked(outcomes[:, None] * gamma ** (lengths - 1 - position), mask)
    decile = (position * DECILES // lengths).clamp(0, DECILES - 1)
    figures = {
        "value/explained_variance": float(explained_variance(values, returns, mask, exact=True)),
        "value/mean": float(values[mask].mean()),
        "value/std": float(batch.old_values[mask].std(correction=0)),
        "value/bias": float((values - returns)[mask].mean()),
    }
    for d in range(DECILES):
        part = mask & (decile == d)
        some = bool(part.any())
        explained = explained_variance(values, returns, part, exact=True)
        figures[f"value/explained_variance_by_position/{d}"] = float(explained)
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
