"""How a value is read from the critic's hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.ranges import check_ranges, number

Start = float | Literal["mean"]
"""What a new head answers before it has learned: a number, or the mean target of the first rollout."""


@dataclass(frozen=True)
class LinearHead:
    """V = w·h + b."""

    start: Start = 0.0
    """V before anything is learned, in units of reward; `mean` is the mean target of the first rollout (JustRL-II)."""
    kind: Literal["linear"] = "linear"


@dataclass(frozen=True)
class BoundedHead:
    """V = low + (high - low)·(1/2 + atan(z)/π), z = w·h + b (BPCO, arXiv:2608.23566)."""

    low: float | None = number(None, unit="reward")
    """Lowest value; null takes the lowest that a target can be."""
    high: float | None = number(None, unit="reward")
    """Highest value; null takes the highest that a target can be."""
    start: Start = "mean"
    """V before anything is learned."""
    kind: Literal["bounded"] = "bounded"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.credit.head")


@dataclass(frozen=True)
class SigmoidHead:
    """V = low + (high - low)·σ(z), learned by binary cross-entropy: for outcomes that are right or wrong."""

    low: float | None = number(None, unit="reward")
    """Lowest value; null takes the lowest that a target can be."""
    high: float | None = number(None, unit="reward")
    """Highest value; null takes the highest that a target can be."""
    start: Start = "mean"
    """V before anything is learned."""
    kind: Literal["sigmoid"] = "sigmoid"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.credit.head")


@dataclass(frozen=True)
class HistogramHead:
    """V = Σ p_j·c_j, a softmax over bins, learned by cross-entropy to the target smeared out (HL-Gauss,
    arXiv:2403.03950)."""

    bins: int = number(51, ge=2, unit="bins")
    """Number of bins."""
    sigma_ratio: float = number(0.75, gt=0, unit="bins")
    """Width σ of the smeared target, in bins."""
    low: float | None = number(None, unit="reward")
    """Lowest value of the support; null leaves 3σ below the lowest target."""
    high: float | None = number(None, unit="reward")
    """Highest value of the support; null leaves 3σ above the highest target."""
    start: Start = "mean"
    """V before anything is learned."""
    kind: Literal["hl_gauss"] = "hl_gauss"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.credit.head")


Head = LinearHead | BoundedHead | SigmoidHead | HistogramHead
