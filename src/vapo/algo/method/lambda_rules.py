"""The rules for λ of GAE: fixed, by the length of a response, or by its turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class Fixed:
    """The same λ for every response."""

    value: float = number(ge=0, le=1)
    """λ of every response."""
    kind: Literal["fixed"] = "fixed"

    def __post_init__(self) -> None:
        check_ranges(self, "a fixed lambda (algorithm.credit.policy_lambda or critic_lambda)")


@dataclass(frozen=True)
class LengthAdaptive:
    """λ(l) = 1 - 1/(α·l), clamped to [0, 1] (VAPO eq. 5)."""

    alpha: float = number(0.05, gt=0, unit="per token")
    """α; λ is 0 for responses of up to 1/α tokens. The paper's 0.05 is meant for thousands of tokens."""
    kind: Literal["length_adaptive"] = "length_adaptive"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm")  # `alpha` is spelled algorithm.alpha


@dataclass(frozen=True)
class Relative:
    """λ(l) = q^(1/(l-1)): the first token receives the share q of the outcome at every length (AReaL)."""

    q: float = number(gt=0, le=1)
    """Weight of the outcome on the first token."""
    kind: Literal["relative"] = "relative"

    def __post_init__(self) -> None:
        check_ranges(self, "a relative lambda (algorithm.credit.policy_lambda or critic_lambda)")


@dataclass(frozen=True)
class Share:
    """λ(l) = k^(1/l): the share k of the outcome reaches the first token at every length (JustRL-II)."""

    k: float = number(0.5, gt=0, le=1, unit="share of the outcome")
    """Share of the outcome that reaches the first token: α is exp(-1/α) in these terms, so 1.5 is 0.51, 0.05 2e-9."""
    kind: Literal["share"] = "share"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm")  # `k` is spelled algorithm.k


@dataclass(frozen=True)
class BetweenTurns:
    """λ between two turns of the policy, and 1 within a turn: credit is discounted by turns, whatever their lengths."""

    value: float = number(0.95, ge=0, le=1)
    """λ from the end of a turn to the next one. In an episode of one turn it has no effect: λ is 1."""
    kind: Literal["turns"] = "turns"

    def __post_init__(self) -> None:
        check_ranges(self, "a lambda between turns (algorithm.credit.policy_lambda or critic_lambda)")


Lambda = Fixed | LengthAdaptive | Relative | Share | BetweenTurns
