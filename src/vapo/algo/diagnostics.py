"""Metrics of the critic's quality, for monitoring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vapo.algo._tensors import require_mask, require_one_shape, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The share of the returns' variance that the critic explains: 1 all, 0 none, below 0 worse than a constant.

        EV = 1 - Var(y - V) / Var(y)          population variances over the tokens of `mask`

    A scalar tensor. It is nan without tokens, and if all returns are equal up to the rounding of the floats
    they were computed in. It does not measure a constant offset, so log the bias as well. Values outside the
    mask, NaN included, have no effect.

    Raises ValueError for shapes that differ or a mask that is not bool.

    Source: VAPO, arXiv:2504.05118 §4.1 (which asks for it to become low; it must become high).
    """
    require_one_shape("explained_variance", values=values, returns=returns, mask=mask)
    require_mask("explained_variance", mask)
    values, returns = widened(torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0))
    _, variance = masked_deviations(returns, mask)
    _, unexplained = masked_deviations(returns - values, mask)
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
