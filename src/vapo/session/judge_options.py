"""What a critic is judged with: how many prompts, responses and continuations, and where responses are cut."""

from __future__ import annotations

from dataclasses import dataclass

from vapo.errors import ConfigError

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 0.95)
PROMPTS = 64
"""Held-out prompts where no number is given; fewer where the task holds out fewer."""
RESPONSES = 4
"""Responses to a prompt where no number is given; a residual critic takes as many as its group had."""
FOLDER = "critic_judgement"
"""The folder inside the run that keeps continuations and results."""


@dataclass(frozen=True)
class JudgeOptions:
    """`prompts` None takes the first PROMPTS, `responses` None RESPONSES, or the group that a residual critic needs.

    Raises ConfigError for numbers that cannot give a judgement.
    """

    prompts: int | None = None
    responses: int | None = None
    continuations: int = 8
    fractions: tuple[float, ...] = FRACTIONS

    def __post_init__(self) -> None:
        if self.prompts is not None and self.prompts < 2:
            raise ConfigError(
                f"--prompts must be at least 2, got {self.prompts}: intervals resample prompts. Take 32 or more."
            )
        if self.responses is not None and self.responses < 2:
            raise ConfigError(
                f"--responses must be at least 2, got {self.responses}: the mean of a prompt's other responses is what "
                "a critic is compared with."
            )
        if self.continuations < 2:
            raise ConfigError(
                f"--continuations must be at least 2, got {self.continuations}: one continuation does not show its own "
                "sampling noise, so the numbers cannot be corrected for it."
            )
        if not self.fractions or not all(0 <= f < 1 for f in self.fractions):
            raise ConfigError(
                f"--at takes fractions in [0, 1), got {', '.join(f'{f:g}' for f in self.fractions) or 'none'}. 0 is "
                "the prompt; behind the whole response (1) nothing is left to foresee."
            )
        if any(b <= a for a, b in zip(self.fractions, self.fractions[1:], strict=False)):
            raise ConfigError(
                "--at takes fractions in ascending order, each once, got "
                f"{', '.join(f'{f:g}' for f in self.fractions)}."
            )


def parse_fractions(text: str) -> tuple[float, ...]:
    """Fractions from `0,0.5,0.9`; raises ConfigError for what is no number."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--at takes numbers with commas, like 0,0.5,0.9, got {text!r}.") from error
