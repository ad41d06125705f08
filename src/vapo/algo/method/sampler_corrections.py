"""What is done where the engine's log-probabilities are not the trainer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class NoCorrection:
    """The sampler's log-probabilities are taken for the trainer's."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class TruncatedWeight:
    """The loss of a token is weighed by min(π_old/π_sampled, cap) (TIS)."""

    cap: float = number(2.0, gt=0)
    """Largest weight."""
    kind: Literal["truncated"] = "truncated"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.sampler")


@dataclass(frozen=True)
class Band:
    """The loss of a token is weighed by π_old/π_sampled inside a band, and left out outside of it (IcePop)."""

    low: float = number(0.5, ge=0, lt=1)
    """Lowest weight that counts."""
    high: float = number(5.0, gt=1)
    """Highest weight that counts."""
    kind: Literal["band"] = "band"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.sampler")


@dataclass(frozen=True)
class SequenceMask:
    """The tokens of a response are weighed by its Π π_old/π_sampled, and left out above a cap (TRL)."""

    cap: float = number(3.0, gt=1)
    """Largest weight that counts."""
    kind: Literal["sequence_mask"] = "sequence_mask"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.sampler")


SamplerCorrection = NoCorrection | TruncatedWeight | Band | SequenceMask
