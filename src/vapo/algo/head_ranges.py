"""How many numbers a head reads, and the range of its values: known before torch loads."""

from __future__ import annotations

from dataclasses import replace

from vapo.algo.method import Algorithm, Gae, Head, HistogramHead, LinearHead
from vapo.errors import ConfigError

MARGIN = 3.0
"""Room beside the targets in a histogram, in σ: nearer to the edge the smeared target is cut and its mean is off."""


def target_range(algorithm: Algorithm) -> tuple[float, float]:
    """The lowest and highest number that the critic's target can be, in units of reward; with scores, where
    those are from 0 to 1."""
    reward, credit = algorithm.reward, algorithm.credit
    low, high = reward.wrong, reward.right
    if isinstance(credit, Gae) and credit.overlong_in_target and reward.overlong_cache > 0:
        low -= 1  # the largest overlong punishment
    if isinstance(credit, Gae) and credit.gamma < 1:
        low, high = min(low, 0.0), max(high, 0.0)  # discounted outcomes approach 0
    if isinstance(credit, Gae) and credit.baseline == "group":
        low, high = low - high, high - low
    return low, high


def width(head: Head) -> int:
    """How many numbers the head reads per token."""
    return head.bins if isinstance(head, HistogramHead) else 1


def with_range(head: Head, low: float, high: float) -> Head:
    """The head with an open range filled in for targets in [low, high].

    Raises ConfigError for a range of its own that does not hold the targets.
    """
    if isinstance(head, LinearHead):
        return head
    room = 0.0
    if isinstance(head, HistogramHead):
        # K bins over (high - low) + 2·room, room = MARGIN·σ, σ = ratio·bin
        per_bin = MARGIN * head.sigma_ratio
        if head.bins <= 2 * per_bin:
            raise ConfigError(
                f"algorithm.credit.head: {head.bins} bins leave no room for targets of width sigma_ratio="
                f"{head.sigma_ratio}; take more than {2 * per_bin:g} bins."
            )
        room = per_bin * (high - low) / (head.bins - 2 * per_bin)
    filled = replace(
        head,
        low=low - room if head.low is None else head.low,
        high=high + room if head.high is None else head.high,
    )
    assert filled.low is not None
    assert filled.high is not None
    if head.start != "mean" and not filled.low <= head.start <= filled.high:
        raise ConfigError(
            f"algorithm.credit.head.start={head.start:g} lies outside of the head's range [{filled.low:g}, "
            f"{filled.high:g}]. Take a value that an outcome can have, or mean."
        )
    if not (filled.low <= low and filled.high >= high):
        raise ConfigError(
            f"algorithm.credit.head: the range [{filled.low:g}, {filled.high:g}] does not hold the critic's targets, "
            f"which lie in [{low:g}, {high:g}]. Widen low and high, or leave them out."
        )
    return filled
