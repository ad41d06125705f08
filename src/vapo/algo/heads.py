"""From a critic's outputs to a value, and the loss that belongs to each head.

`vapo.algo.head_ranges` says how many numbers z a head reads per token, and fills in a range that it leaves open.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_never

import torch
import torch.nn.functional as F

from vapo.algo._tensors import require_one_shape, widened
from vapo.algo.head_ranges import MARGIN
from vapo.algo.losses import value_loss
from vapo.algo.method import BoundedHead, Head, HistogramHead, LinearHead, SigmoidHead

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def bounded_value(z: Float[Tensor, "*N"], *, low: float, high: float) -> Float[Tensor, "*N"]:
    """A value that cannot leave its range.

        V = low + (high - low)·(1/2 + atan(z)/π)

    In units of reward; differentiable in z. Its tails fall as 1/z, so the gradient does not vanish as a sigmoid's does.

    Raises ValueError unless low < high.

    Source: BPCO, arXiv:2608.23566.
    """
    _require_range("bounded_value", low, high)
    (z,) = widened(z)
    return low + (high - low) * (0.5 + torch.atan(z) / math.pi)


def histogram_target(
    returns: Float[Tensor, "*N"], *, low: float, high: float, bins: int, sigma: float
) -> Float[Tensor, "*N K"]:
    """A target smeared over equal bins of [low, high]: the share of N(y, σ²) that falls into each.

        p_j = (Φ((e_{j+1} - y)/σ) - Φ((e_j - y)/σ)) / (Φ((e_K - y)/σ) - Φ((e_0 - y)/σ))          e: the edges

    Each last axis sums to 1. Near an edge the mean of p is not y; leave 3σ of room (arXiv:2403.03950 §4.1).

    Raises ValueError unless low < high, bins ≥ 2 and sigma > 0.

    Source: HL-Gauss, arXiv:2403.03950, eq. 5.
    """
    _require_range("histogram_target", low, high)
    if bins < 2 or not sigma > 0:
        raise ValueError(f"histogram_target needs bins >= 2 and sigma > 0, got bins={bins}, sigma={sigma}.")
    (returns,) = widened(returns)
    returns = returns.clamp(low, high)  # far outside, no bin would get anything
    edges = torch.linspace(low, high, bins + 1, dtype=returns.dtype, device=returns.device)
    below = torch.special.ndtr((edges - returns[..., None]) / sigma)
    mass = below.diff(dim=-1)
    return mass / (below[..., -1:] - below[..., :1]).clamp(min=torch.finfo(returns.dtype).tiny)


def histogram_value(logits: Float[Tensor, "*N K"], *, low: float, high: float) -> Float[Tensor, "*N"]:
    """The mean of a softmax over equal bins of [low, high]: V = Σ_j p_j·c_j, c the bins' centres; differentiable.

    Raises ValueError unless low < high.

    Source: arXiv:2403.03950, eq. 3.
    """
    _require_range("histogram_value", low, high)
    (logits,) = widened(logits)
    return logits.softmax(-1) @ _centres(low, high, logits.shape[-1]).to(logits)


def head_values(head: Head, outputs: Float[Tensor, "*N K"]) -> Float[Tensor, "*N"]:
    """V in units of reward from the head's outputs, differentiable.

        linear    z             bounded   `bounded_value`(z)
        sigmoid   low + (high - low)·σ(z)             hl_gauss  `histogram_value`(z)

    Source: BPCO, arXiv:2608.23566 (bounded); arXiv:2403.03950 (hl_gauss).
    """
    match head:
        case LinearHead():
            return outputs[..., 0]
        case BoundedHead(low=low, high=high):
            return bounded_value(outputs[..., 0], **_range(low, high))
        case SigmoidHead(low=low, high=high):
            low, high = _range(low, high).values()
            return low + (high - low) * outputs[..., 0].sigmoid()
        case HistogramHead(low=low, high=high):
            return histogram_value(outputs, **_range(low, high))
        case _:
            assert_never(head)


def head_loss(
    head: Head,
    outputs: Float[Tensor, "*B T K"],
    returns: Float[Tensor, "*B T"],
    *,
    old_values: Float[Tensor, "*B T"] | None = None,
    clip: float | None = None,
) -> Float[Tensor, "*B T"]:
    """The critic's loss of each token: a squared error, or the cross-entropy of a head that is a distribution.

        linear, bounded    ½·(V - y)², clipped around `old_values` as in `value_loss`
        sigmoid            -p·log σ(z) - (1 - p)·log(1 - σ(z))          p = (y - low)/(high - low)
        hl_gauss           -Σ_j p_j·log softmax(z)_j                    p: `histogram_target`

    Gradient flows into `outputs` alone. `clip` belongs to the squared error.

    Raises ValueError for shapes that differ.

    Source: VAPO, arXiv:2504.05118 §4.1 for the target; arXiv:2403.03950 for cross-entropies.
    """
    require_one_shape("head_loss", outputs=outputs[..., 0], returns=returns)
    returns = returns.detach()
    match head:
        case LinearHead() | BoundedHead():
            return value_loss(head_values(head, outputs), returns, old_values=old_values, clip=clip)
        case SigmoidHead(low=low, high=high):
            low, high = _range(low, high).values()
            z, target = widened(outputs[..., 0], (returns.clamp(low, high) - low) / (high - low))
            return F.binary_cross_entropy_with_logits(z, target, reduction="none")
        case HistogramHead(low=low, high=high, bins=bins, sigma_ratio=ratio):
            held = _range(low, high)
            sigma = ratio * (held["high"] - held["low"]) / bins
            outputs, returns = widened(outputs, returns)
            target = histogram_target(returns, **held, bins=bins, sigma=sigma)
            return -(target * outputs.log_softmax(-1)).sum(-1)
        case _:
            assert_never(head)


def start_bias(head: Head, value: float) -> Float[Tensor, " K"]:
    """The outputs for which the head's value is `value`: its bias, while its weights are 0.

    A value near the edge of a range is moved inside: by a thousandth of the range, for a bounded head by a tenth. In
    the tails of atan the gradient is so small that the head would hardly leave them.
    """
    if isinstance(head, LinearHead):
        return torch.tensor([value], dtype=torch.float32)
    if isinstance(head, HistogramHead):
        return _mixed_bias(head, value)
    low, high = _range(head.low, head.high).values()
    edge = (0.1 if isinstance(head, BoundedHead) else 1e-3) * (high - low)
    share = (min(max(value, low + edge), high - edge) - low) / (high - low)
    if isinstance(head, BoundedHead):
        return torch.tensor([math.tan(math.pi * (share - 0.5))], dtype=torch.float32)
    return torch.tensor([math.log(share / (1 - share))], dtype=torch.float32)


UNIFORM = 0.05
"""Share of a histogram's start that is spread over all bins, so that no bin begins out of reach."""


def _mixed_bias(head: HistogramHead, value: float) -> Tensor:
    """log p of a mixture whose mean is the value: of the lowest and the highest target, and of all bins a little.

    A mean outcome stands for outcomes at both ends of the range.
    """
    held = _range(head.low, head.high)
    sigma = head.sigma_ratio * (held["high"] - held["low"]) / head.bins
    ends = torch.tensor([held["low"] + MARGIN * sigma, held["high"] - MARGIN * sigma], dtype=torch.float64)
    lowest, highest = histogram_target(ends, **held, bins=head.bins, sigma=sigma)
    centres = _centres(held["low"], held["high"], head.bins).double()
    wanted = (value - UNIFORM * float(centres.mean())) / (1 - UNIFORM)
    bottom, top = float(lowest @ centres), float(highest @ centres)
    share = min(1.0, max(0.0, (wanted - bottom) / (top - bottom)))
    mixture = (1 - UNIFORM) * ((1 - share) * lowest + share * highest) + UNIFORM / head.bins
    return mixture.log().float()


def _centres(low: float, high: float, bins: int) -> Tensor:
    edges = torch.linspace(low, high, bins + 1)
    return (edges[1:] + edges[:-1]) / 2


def _range(low: float | None, high: float | None) -> dict[str, float]:
    assert low is not None, "the head's range is filled in by with_range"
    assert high is not None
    return {"low": low, "high": high}


def _require_range(function: str, low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"{function} needs low < high, got low={low}, high={high}: the range of the outcomes.")
