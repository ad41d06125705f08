"""Metrics of the critic's quality, for monitoring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vapo.algo._tensors import numbered, require_bool, require_groups, require_mask, require_one_shape, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    exact: bool = False,
) -> Float[Tensor, ""]:
    """The share of the returns' variance that the critic explains: 1 all, 0 none, below 0 worse than a constant.

        EV = 1 - Var(y - V) / Var(y)          population variances over the tokens of `mask`

    A scalar tensor. It is nan without tokens, and if all returns are equal: up to the rounding of A + V, or with
    `exact` to the last digit, for returns that are outcomes and were never added to a value. It does not measure a
    constant offset, so log the bias as well. Values outside the mask, NaN included, have no effect.

    Raises ValueError for shapes that differ or a mask that is not bool.

    Source: VAPO, arXiv:2504.05118 §4.1 (which asks for it to become low; it must become high).
    """
    require_one_shape("explained_variance", values=values, returns=returns, mask=mask)
    require_mask("explained_variance", mask)
    values, returns = widened(torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0))
    _, variance = masked_deviations(returns, mask)
    _, unexplained = masked_deviations(returns - values, mask)
    if exact:
        return torch.where(variance > 0, 1 - unexplained / variance, math.nan)
    # returns are computed as A + V, so equal ones may differ by rounding
    size = (values.abs() + returns.abs()).sum() / mask.sum().clamp(min=1)
    rounding = 16 * torch.finfo(returns.dtype).eps * size
    return torch.where(variance > rounding.square(), 1 - unexplained / variance, math.nan)


def masked_deviations(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x` minus its mean over `mask`, 0 outside it; and the population variance. Both are 0 if all are equal.

    The mean is that of the distance to the smallest number, which is exactly 0 for equal numbers; the float
    mean of n times 0.1 may differ from 0.1.
    """
    if x.numel() == 0:
        return x, x.new_zeros(())
    count = mask.sum().clamp(min=1)
    excess = torch.where(mask, x - torch.where(mask, x, math.inf).amin(), 0.0)
    deviations = torch.where(mask, excess - excess.sum() / count, 0.0)
    return deviations, deviations.square().sum() / count


@torch.no_grad()
def within_group_auc(
    values: Float[Tensor, " N"], right: Bool[Tensor, " N"], groups: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """How often the critic puts a right response above a wrong one to the same prompt: 0.5 is chance, 1 is always.

        AUC = Σ_groups Σ_{i right, j wrong} [V_i > V_j] + ½·[V_i = V_j]  /  number of such pairs

    A scalar tensor; nan if no group has both right and wrong responses. What differs between prompts does not count:
    this is what a critic can add to a group's mean.

    Raises ValueError for shapes that differ, verdicts that are not bool, groups that are not integers.

    Source: the Mann-Whitney statistic, summed over groups.
    """
    require_groups("within_group_auc", None, values=values, right=right, groups=groups)
    require_bool("within_group_auc", right=right)
    (values,) = widened(values)
    won, pairs = values.new_zeros(()), 0
    for group in groups.unique():
        better, worse = values[(groups == group) & right], values[(groups == group) & ~right]
        gap = better[:, None] - worse[None, :]
        won = won + (gap > 0).sum() + 0.5 * (gap == 0).sum()
        pairs += gap.numel()
    return won / pairs if pairs else values.new_tensor(math.nan)


@torch.no_grad()
def between_share(outcomes: Float[Tensor, " N"], groups: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """The share of the outcomes' variance that lies between prompts: what a perfect prompt-only baseline explains.

        Σ_i (mean of i's group - mean of all)² / Σ_i (R_i - mean of all)²

    A scalar tensor in [0, 1]; nan if all outcomes are equal. Small groups inflate it: pure noise in groups of n
    gives about 1/n.

    Raises ValueError for shapes that differ, groups that are not integers.

    Source: the law of total variance.
    """
    require_groups("between_share", None, outcomes=outcomes, groups=groups)
    (outcomes,) = widened(outcomes)
    deviations, variance = masked_deviations(outcomes[None], torch.ones_like(outcomes[None], dtype=torch.bool))
    index, num_groups = numbered(groups)
    zeros = outcomes.new_zeros(num_groups)
    mean = zeros.index_add(0, index, deviations[0]) / zeros.index_add(0, index, torch.ones_like(outcomes)).clamp(min=1)
    between = mean[index].square().sum() / max(1, len(outcomes))
    return torch.where(variance > 0, between / variance, math.nan)
