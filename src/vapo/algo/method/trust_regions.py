"""How far one step's updates may move the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class Clip:
    """The probability ratio ρ is clipped to [1 - low, 1 + high] (PPO; clip-higher: DAPO §3.1)."""

    low: float = number(ge=0, le=1)
    """How far ρ may fall below 1: 1 - low bounds a probability ratio."""
    high: float = number(ge=0)
    """How far ρ may rise above 1."""
    kind: Literal["clip"] = "clip"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.clip")


@dataclass(frozen=True)
class DualClip:
    """`Clip`, and where A < 0 the objective is at least c·A (arXiv:1912.09729)."""

    low: float = number(0.2, ge=0, le=1)
    """How far ρ may fall below 1."""
    high: float = number(0.2, ge=0)
    """How far ρ may rise above 1."""
    c: float = number(3.0, gt=1)
    """Bound of the loss for tokens with A < 0, in units of |A|."""
    kind: Literal["dual"] = "dual"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.clip")


@dataclass(frozen=True)
class RatioMask:
    """A token counts while low ≤ π/π_sampled ≤ high, with the gradient of its ratio; outside it is left out (SAO)."""

    low: float = number(0.7, ge=0, lt=1)
    """Lowest ratio that counts."""
    high: float = number(6.0, gt=1)
    """Highest ratio that counts."""
    kind: Literal["ratio_mask"] = "ratio_mask"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.clip")


@dataclass(frozen=True)
class ProbabilityBound:
    """|π - π_sampled| ≤ eps: the ratio is clipped to 1 ± eps/π_sampled (DPPO, arXiv:2602.04879)."""

    eps: float = number(0.2, gt=0, le=1, unit="probability")
    """How far a token's probability may move."""
    kind: Literal["probability"] = "probability"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.clip")


TrustRegion = Clip | DualClip | RatioMask | ProbabilityBound
