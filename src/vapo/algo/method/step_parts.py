"""What a step samples, what a verdict is worth, the KL penalty, and the sizes of an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError
from vapo.ranges import check_ranges, number


@dataclass(frozen=True)
class Sampling:
    """How many responses one rollout step draws, and from how many prompts."""

    prompts: int = number(ge=1, unit="prompts")
    """Prompts per rollout step."""
    per_prompt: int = number(ge=1, unit="responses")
    """Responses per prompt: the group size."""
    refill_rounds: int = number(0, ge=0, unit="rounds")
    """Dynamic sampling (DAPO §3.2): groups that are all right or all wrong are dropped and replaced by new
    prompts, in at most this many further rounds; 0 switches it off."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.sampling")
        if self.refill_rounds and self.per_prompt < 2:
            raise ConfigError(
                "Dynamic sampling (algorithm.sampling.refill_rounds > 0) needs at least 2 responses per prompt: a "
                "single response is always all right or all wrong. Raise trainer.group_size."
            )

    @property
    def samples(self) -> int:
        """Responses per rollout step."""
        return self.prompts * self.per_prompt


@dataclass(frozen=True)
class Reward:
    """What a verdict is worth, before any shaping."""

    by: Literal["verdict", "score"] = "verdict"
    """`verdict`: a response is right or wrong, without partial credit. `score`: the verifier's score s is worth
    wrong + s (right - wrong), which with the defaults is the score itself; a verdict without a score counts as 1 or 0.
    What is right (for the LM loss, dynamic sampling, accuracy) stays with task.right_at."""
    right: float = number(1.0, unit="reward")
    """Outcome of a right response, or of the score 1."""
    wrong: float = number(0.0, unit="reward")
    """Outcome of a wrong response, or of the score 0."""
    overlong_cache: float = number(0.0, ge=0, lt=1, unit="share of the length limit")
    """Soft overlong punishment (DAPO eq. 13): L_cache as a fraction of the length limit; 0 is off."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.reward")
        if not self.right > self.wrong:
            raise ConfigError(
                f"algorithm.reward.right ({self.right}) must exceed algorithm.reward.wrong ({self.wrong})."
            )


@dataclass(frozen=True)
class Kl:
    """A KL penalty to a reference policy, as a loss term (never in the reward as well)."""

    coef: float = number(0.0, ge=0)
    """Weight β of the term; 0 is off and loads no reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Which estimator of the divergence (Schulman 2020, "Approximating KL divergence")."""
    refresh_every: int = number(0, ge=0, unit="gradient steps")
    """Gradient steps after which the reference becomes the current policy (R1-Zero: 400); 0 is never."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.kl")


@dataclass(frozen=True)
class Optimization:
    """Step sizes. One rollout step makes samples / minibatch gradient steps."""

    minibatch: int = number(512, ge=1, unit="responses")
    """Responses per gradient step."""
    actor_lr: float = number(1e-6, ge=0, unit="per gradient step")
    """Policy learning rate."""
    critic_lr: float = number(2e-6, ge=0, unit="per gradient step")
    """Critic learning rate."""
    warmup_steps: int = number(20, ge=0, unit="rollout steps")
    """Rollout steps over which the learning rates rise linearly from 0; constant afterwards."""
    epochs: int = number(1, ge=1, unit="passes")
    """Passes over each step's responses."""

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.optimization")
