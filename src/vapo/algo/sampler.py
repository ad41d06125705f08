"""Ratios to the policy that sampled: trust regions around it, and weights that correct for it.

Two ratios, never mixed. π/π_sampled moves while the policy learns: it is what a trust region around the sampler
bounds. π_old/π_sampled is fixed before the update, 1 where engine and trainer agree: it weighs the loss of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch

from vapo.algo._tensors import require_mask, require_one_shape, widened
from vapo.algo.method import Band, NoCorrection, SamplerCorrection, SequenceMask, TruncatedWeight

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_LARGEST = 80.0
"""Log-ratios are cut here: beyond every bound, and e^80 is finite."""


def ratio_masked_surrogate(
    logp: Float[Tensor, "*B T"],
    sampled_logp: Float[Tensor, "*B T"],
    advantages: Float[Tensor, "*B T"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "*B T"]:
    """The policy loss of each token, which counts only while its ratio to the sampler is in a band.

        L_t = -ρ_t·A_t  if low ≤ ρ_t ≤ high, else 0          ρ_t = exp(logp_t - sampled_logp_t)

    Its gradient is -sg(ρ_t)·A_t·∇logp_t inside and 0 outside, whatever the sign of A. Log-probabilities in nats.

    Raises ValueError for shapes that differ, or unless 0 <= low < 1 < high.

    Source: SAO, arXiv:2607.07508 (its masked importance sampling; 0.7 and 6 for mathematics).
    """
    require_one_shape("ratio_masked_surrogate", logp=logp, sampled_logp=sampled_logp, advantages=advantages)
    if not 0 <= low < 1 < high:
        raise ValueError(f"ratio_masked_surrogate needs 0 <= low < 1 < high, got low={low}, high={high}.")
    logp, sampled_logp, advantages = widened(logp, sampled_logp.detach(), advantages.detach())
    log_ratio = logp - sampled_logp
    ratio = log_ratio.detach().exp()
    inside = (ratio >= low) & (ratio <= high)  # False for a ratio that is not a number
    safe = torch.where(inside, log_ratio, 0.0)
    return torch.where(inside, -safe.exp() * torch.where(inside, advantages, 0.0), 0.0)


def probability_bounded_surrogate(
    logp: Float[Tensor, "*B T"],
    sampled_logp: Float[Tensor, "*B T"],
    advantages: Float[Tensor, "*B T"],
    *,
    eps: float,
) -> Float[Tensor, "*B T"]:
    """PPO's loss with a bound on how far the probability of a token moves, instead of its ratio.

        L_t = -min(ρ_t·A_t, clip(ρ_t, 1 - ε/μ_t, 1 + ε/μ_t)·A_t)      ρ_t = exp(logp_t)/μ_t,  μ_t = exp(sampled_logp_t)

    So |π - μ| ≤ ε: a token of μ = 0.5 may move by 1 ± 0.4 with ε = 0.2, one of 0.01 by 1 ± 20. Beyond the bound the
    gradient is 0, on the side that A pushes to. Log-probabilities in nats.

    Raises ValueError for shapes that differ, eps outside (0, 1].

    Source: DPPO, arXiv:2602.04879.
    """
    require_one_shape("probability_bounded_surrogate", logp=logp, sampled_logp=sampled_logp, advantages=advantages)
    if not 0 < eps <= 1:
        raise ValueError(f"probability_bounded_surrogate needs eps in (0, 1], got {eps}: it bounds a probability.")
    logp, sampled_logp, advantages = widened(logp, sampled_logp.detach(), advantages.detach())
    ratio = (logp - sampled_logp).clamp(max=_LARGEST).exp()
    room = eps * (-sampled_logp).clamp(max=_LARGEST).exp()  # ε/μ
    clipped = torch.minimum(torch.maximum(ratio, 1 - room), 1 + room)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    # a token outside the mask may hold anything: it keeps its number and gives no gradient
    finite = loss.isfinite()
    return torch.where(finite, loss, loss.detach())


@torch.no_grad()
def sampler_weights(
    correction: SamplerCorrection,
    old_logp: Float[Tensor, "B T"],
    sampled_logp: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The weight of each token's policy loss, without gradient, and the tokens that the correction cut or left out.

        w_t = π_old/π_sampled         none           1
                                      truncated      min(w_t, cap)
                                      band           w_t inside [low, high], else 0
                                      sequence_mask  Π_t w_t of the whole response up to cap, else 0

    Log-probabilities in nats. Weights are 1 outside the mask.

    Raises ValueError for shapes that differ.

    Source: TIS (Yao et al. 2025); IcePop for the band; the sequence mask is TRL's.
    """
    require_mask("sampler_weights", mask)
    require_one_shape("sampler_weights", old_logp=old_logp, sampled_logp=sampled_logp, mask=mask)
    old_logp, sampled_logp = widened(old_logp, sampled_logp)
    log_ratio = torch.where(mask, old_logp - sampled_logp, 0.0)
    ratio = log_ratio.clamp(max=_LARGEST).exp()
    match correction:
        case NoCorrection():
            return torch.ones_like(ratio), torch.zeros_like(mask)
        case TruncatedWeight(cap=cap):
            return ratio.clamp(max=cap), mask & (ratio > cap)
        case Band(low=low, high=high):
            inside = (ratio >= low) & (ratio <= high)
            return torch.where(mask & ~inside, 0.0, ratio), mask & ~inside
        case SequenceMask(cap=cap):
            whole = log_ratio.sum(-1, keepdim=True).clamp(max=_LARGEST).exp()
            kept = whole <= cap
            return torch.where(mask, torch.where(kept, whole, 0.0), 1.0), mask & ~kept
        case _:
            assert_never(correction)
