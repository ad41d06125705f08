"""Baselines from the outcomes of a prompt's other responses, and how far to trust a critic beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vapo.algo._tensors import numbered, require_groups, require_mask, require_one_shape, require_rows, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@torch.no_grad()
def leave_one_out(
    outcomes: Float[Tensor, " N"], groups: Int[Tensor, " N"], *, valid: Bool[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """The mean outcome of the other responses to the same prompt.

        b_i = Σ_{j≠i} R_j / (n - 1)          over the n valid members of i's group

    In units of reward. A residual critic learns R_i - b_i; with a critic of 0 and λ = 1 that is RLOO. Invalid members
    do not count, whatever their outcome; they get the mean of all valid members of their group. A response without
    other valid members gets 0.

    Raises ValueError for shapes that differ, groups that are not integers.

    Source: RLOO, arXiv:2402.14740, eq. 3.
    """
    valid = require_groups("leave_one_out", valid, outcomes=outcomes, groups=groups)
    index, num_groups = numbered(groups)
    (outcomes,) = widened(outcomes)
    # The mean of the distance to the group's smallest outcome: equal outcomes have exactly themselves as baseline.
    smallest = outcomes.new_full((num_groups,), math.inf)
    smallest = smallest.scatter_reduce(0, index, torch.where(valid, outcomes, math.inf), "amin")[index]
    excess = torch.where(valid, outcomes - smallest, 0.0)
    zeros = outcomes.new_zeros(num_groups)
    total = zeros.index_add(0, index, excess)[index]
    others = zeros.index_add(0, index, valid.to(outcomes.dtype))[index] - valid.to(outcomes.dtype)
    return torch.where(others > 0, smallest + (total - excess) / others.clamp(min=1), 0.0)


@torch.no_grad()
def mixture_sums(
    outcomes: Float[Tensor, " B"],
    baseline: Float[Tensor, " B"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> tuple[float, float]:
    """The two sums over the tokens from which the critic's share ρ of a mixed baseline is fitted.

        baseline_t = (1 - ρ)·b + ρ·V_t
        Σ (R - b)·(V_t - b)  and  Σ (V_t - b)²          ρ = first / second: least squares of R

    Sums of several steps add up, so that ρ can be fitted to all of them; see `mixture_share`.

    Raises ValueError for shapes that differ.

    Source: "Le Critique" (TETHER, 2026): ρ from earlier batches, so that it does not depend on the outcome it judges.
    """
    require_mask("mixture_sums", mask)
    require_one_shape("mixture_sums", values=values, mask=mask)
    require_rows("mixture_sums", len(mask), outcomes=outcomes, baseline=baseline)
    outcomes, baseline, values = widened(outcomes, baseline, torch.where(mask, values, 0.0))
    gap = torch.where(mask, values - baseline[:, None], 0.0)
    return float(((outcomes - baseline)[:, None] * gap).sum()), float(gap.square().sum())


def mixture_share(product: float, square: float) -> float:
    """ρ of `mixture_sums`, clipped to [0, 1]; 0 if the critic has not differed from the group's mean.

    Source: "Le Critique" (TETHER, 2026); clipping is ours.
    """
    return min(1.0, max(0.0, product / square)) if square > 0 else 0.0
