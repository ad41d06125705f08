"""Uniform random numbers that depend on seed and position only, and tokens drawn with them.

No function keeps state: the same seed, position and logits give the same token, whatever else is in the batch.
All functions are vectorised over rows and never wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vapo.errors import ConfigError
from vapo.types import Decoding

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

BLOCK = 512
"""Tokens whose probabilities are summed together before one is drawn."""
_BELOW_ONE = 1.0 - 2.0**-53


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value` (which may be any Python int)."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; on int64, `>>` alone copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 bits; products wrap, as they do on unsigned integers."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def uniforms(seeds: Sequence[int], count: int, device: torch.device | None = None) -> Tensor:
    """`count` uniforms in [0, 1) for each seed, float64, (len(seeds), count).

    Column n of a row is a hash of (seed, n) alone: a row does not depend on the other rows, and its first
    columns do not depend on `count`. Any Python int is a seed; only its lowest 64 bits count.
    """
    keys = _mix(torch.tensor([_signed(seed) for seed in seeds], dtype=torch.int64, device=device))
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _signed(_GOLDEN)
    # The upper 53 bits fill a double's mantissa exactly: the largest value is 1 - 2^-53, never 1.
    return _shift(_mix(keys[:, None] + steps), 11).to(torch.float64) * 2.0**-53


def draw_tokens(logits: Tensor, u: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Tokens (B,) drawn from `logits` (B, V) with the uniforms `u` (B,) float64, and their logprobs (B,).

    The token is the inverse CDF at `u`, so a token of probability 0 is never drawn. The logprobs (nats,
    float32) are those of the distribution drawn from: softmax(logits / temperature), cut to the nucleus and
    renormalised if `top_p` < 1. At `temperature` 0 the token is the argmax (the lowest id of equals), and the logprob
    is that of softmax(logits): the distribution drawn from is a point, whose logprob is always 0. A row with a NaN
    gives the logprob NaN.
    """
    logits = logits.float()
    if temperature == 0.0:
        logp = torch.log_softmax(logits, dim=-1)
        tokens = logits.argmax(dim=-1)
        return tokens, logp.gather(1, tokens[:, None]).squeeze(1)
    if temperature != 1.0:
        logits = logits / temperature
    logp = torch.log_softmax(logits, dim=-1)
    if top_p < 1.0:
        return _sample_nucleus(logp, u, top_p)
    tokens = _inverse_cdf(logp.exp(), u)
    return tokens.squeeze(1), logp.gather(1, tokens).squeeze(1)


def _inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds `u` times the total, (B, 1).

    `u` is at most 1 - 2^-53, so the target is below the total in float64 and index i is found only if
    cdf[i] > target >= cdf[i - 1]: its weight is positive. In a large vocabulary the block is found first, and summing
    within it alone saves most of a sum that is done token by token.
    """
    if weights.shape[-1] <= 4 * BLOCK:
        return _first_above(weights, u[:, None])
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(dim=-1).double()
    ends = sums.cumsum(dim=-1)
    target = u[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp_(max=sums.shape[-1] - 1)
    inside = (target - (ends - sums).gather(1, block)) / sums.gather(1, block)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    index = block * BLOCK + _first_above(within, inside.clamp_(0.0, _BELOW_ONE))
    return index.clamp_(max=weights.shape[-1] - 1)  # only NaN weights end in the padding


def _first_above(weights: Tensor, share: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds `share` (B, 1) of the total, (B, 1)."""
    cdf = weights.cumsum(dim=-1, dtype=torch.float64)
    index = torch.searchsorted(cdf, share * cdf[:, -1:], right=True)
    return index.clamp_(max=weights.shape[-1] - 1)  # the index is out of range only for NaN weights


def _sample_nucleus(logp: Tensor, u: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draw from the smallest set of most probable tokens that has at least `top_p` of the probability."""
    logp, order = logp.sort(dim=-1, descending=True, stable=True)
    probs = logp.exp()
    before = probs.cumsum(dim=-1, dtype=torch.float64) - probs
    kept = torch.where(before < top_p, probs, 0.0)  # `before` is 0 for the first token: always kept
    index = _inverse_cdf(kept, u)
    total = kept.sum(dim=-1, dtype=torch.float64, keepdim=True)
    renormalised = logp.gather(1, index) - total.log().float()
    return order.gather(1, index).squeeze(1), renormalised.squeeze(1)


def check_decoding(how: Decoding) -> None:
    """Raise ConfigError for settings outside of their ranges."""
    if how.max_tokens < 1:
        raise ConfigError(f"rollout.max_response_tokens must be at least 1, got {how.max_tokens}.")
    if not 0.0 <= how.temperature < float("inf"):
        raise ConfigError(f"rollout.temperature must be 0 (greedy) or positive, got {how.temperature}.")
    if not 0.0 < how.top_p <= 1.0:
        raise ConfigError(f"rollout.top_p must be above 0 and at most 1, got {how.top_p}.")
