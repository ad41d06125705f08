"""The tokens that the critic's loss is taken at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError


@dataclass(frozen=True)
class AllTokens:
    """The critic learns the value of every token."""

    kind: Literal["all"] = "all"


@dataclass(frozen=True)
class Anchors:
    """The critic learns the values of a few separate tokens of each response (SP3O, arXiv:2609.18708)."""

    fractions: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Where they stand: token floor(f·l) of a response of l tokens, counted from 0."""
    kind: Literal["anchors"] = "anchors"

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise ConfigError(
                "algorithm.credit.value_tokens.fractions must be numbers in (0, 1], got "
                f"{list(self.fractions)}. SP3O uses [0.3, 0.6, 0.9]."
            )


@dataclass(frozen=True)
class TurnStarts:
    """The critic learns the value of the first token of each turn of the policy."""

    kind: Literal["turns"] = "turns"


ValueTokens = AllTokens | Anchors | TurnStarts
