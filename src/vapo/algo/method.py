"""The fields of `Algorithm`, which defines a method, each with its meaning and range.

One technique is one field, so an ablation is one copied field (`vapo.algo.techniques`). Where a field has variants,
it is a union of small types that share one tag, `kind`. The papers' numbers are in `vapo.algo.presets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.errors import ConfigError, counted
from vapo.ranges import check_ranges, number

# --------------------------------------------------------------------------- rules for lambda


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


Lambda = Fixed | LengthAdaptive | Relative


# --------------------------------------------------------------------------- sampling and credit


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
class LinearHead:
    """V = w·h + b, starting at 0."""

    kind: Literal["linear"] = "linear"


Head = LinearHead


@dataclass(frozen=True)
class Gae:
    """Credit from a critic: generalised advantage estimation, decoupled (VC-PPO) and pretrained (VAPO §4.1)."""

    policy_lambda: Lambda
    """λ of the advantages the policy learns from."""
    critic_lambda: Lambda
    """λ of the returns the critic learns; 1 gives Monte-Carlo returns."""
    gamma: float = number(1.0, ge=0, le=1)
    """Discount γ."""
    pretraining_steps: int = number(0, ge=0, unit="rollout steps")
    """Rollout steps of value pretraining with the fixed initial policy; N means exactly N."""
    critic_updates: int = number(1, ge=1, unit="passes")
    """Critic passes over the step's minibatches for each policy pass (SAO uses 2)."""
    value_clip: float | None = number(None, gt=0, unit="reward")
    """PPO value clipping range, in reward units; null is off, as in the papers."""
    critic_reduction: Literal["token", "sequence"] = "token"
    """Who counts the same in the critic's loss; not stated in the papers."""
    whiten: bool = False
    """Normalise the policy's advantages to mean 0, variance 1 over the step; never the critic's targets."""
    head: Head = LinearHead()
    """How a value is read from the critic's hidden state."""
    kind: Literal["gae"] = "gae"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.credit")


@dataclass(frozen=True)
class GroupBaseline:
    """Credit without a critic: (R - mean) / std over the responses to one prompt (GRPO, DAPO eq. 9)."""

    std: Literal["population", "sample"] | None = "population"
    """Which standard deviation divides; null divides by nothing (Dr. GRPO)."""
    kind: Literal["group"] = "group"


Credit = Gae | GroupBaseline


# --------------------------------------------------------------------------- trust region, reward, KL


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


TrustRegion = Clip | DualClip


@dataclass(frozen=True)
class Reward:
    """What a verdict is worth, before any shaping."""

    right: float = number(1.0, unit="reward")
    """Outcome of a right response."""
    wrong: float = number(0.0, unit="reward")
    """Outcome of a wrong response."""
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


Truncation = Literal["zero", "bootstrap", "drop"]


@dataclass(frozen=True)
class Algorithm:
    """A method, complete: whatever is not here does not change what is learned."""

    sampling: Sampling
    credit: Credit
    clip: TrustRegion
    reduction: Literal["token", "sequence"]
    """Who counts the same in the policy loss: every token of the minibatch, or every response."""
    positive_lm: float = number(0.0, ge=0)
    """μ, the weight of the language-model loss on verified right responses (VAPO eq. 10)."""
    reward: Reward = Reward()
    kl: Kl = Kl()
    truncated: Truncation = "zero"
    """Responses cut off at the length limit: `zero` ends the episode there with its verdict; `bootstrap` puts
    the critic's value of the state after the cut in the place of the failure; `drop` keeps them out of every
    loss, the critic's too (overlong filtering)."""
    optimization: Optimization = Optimization()

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm")
        if isinstance(self.credit, GroupBaseline):
            if self.sampling.per_prompt < 2:
                raise ConfigError(
                    f"A group baseline needs at least 2 responses per prompt, got {self.sampling.per_prompt}: with "
                    "one, the group mean is the reward itself and every advantage is 0. Raise trainer.group_size, or "
                    "use a preset with a critic."
                )
            if self.truncated == "bootstrap":
                raise ConfigError(
                    "algorithm.truncated: bootstrap needs a critic to take the value from; use zero or drop, or take a "
                    "preset with a critic."
                )
        if self.sampling.samples % self.optimization.minibatch:
            raise ConfigError(
                f"The minibatch ({counted(self.optimization.minibatch, 'response')}) must divide the "
                f"{counted(self.sampling.samples, 'response')} of a step "
                f"({counted(self.sampling.prompts, 'prompt')} x {self.sampling.per_prompt}); change "
                "trainer.minibatch_size."
            )

    @property
    def has_critic(self) -> bool:
        """Whether a critic gives the credit."""
        return isinstance(self.credit, Gae)

    @property
    def pretrains(self) -> bool:
        """Whether the critic is fitted to the initial policy before joint training."""
        return isinstance(self.credit, Gae) and self.credit.pretraining_steps > 0
