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


@dataclass(frozen=True)
class Share:
    """λ(l) = k^(1/l): the share k of the outcome reaches the first token at every length (JustRL-II)."""

    k: float = number(0.5, gt=0, le=1, unit="share of the outcome")
    """Share of the outcome that reaches the first token: α is exp(-1/α) in these terms, so 1.5 is 0.51, 0.05 2e-9."""
    kind: Literal["share"] = "share"

    def __post_init__(self) -> None:
        check_ranges(self, "a share lambda (algorithm.credit.policy_lambda or critic_lambda)")


Lambda = Fixed | LengthAdaptive | Relative | Share


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


# --------------------------------------------------------------------------- heads of the critic

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


# --------------------------------------------------------------------------- tokens of the critic's loss


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


# --------------------------------------------------------------------------- credit


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
    baseline: Literal["none", "group", "fitted", "gated"] = "none"
    """What the group knows beside the critic. `none`: V is the critic's. `group`: the critic learns what the mean
    outcome of the group's other responses leaves, and V is the sum of both. `fitted`: V is a mixture of that mean and
    the critic's value, its share fitted to earlier steps (TETHER). `gated`: V is the critic's while it explains
    variance, else the mean outcome of the step's other responses (EVPO)."""
    value_tokens: ValueTokens = AllTokens()
    """Which tokens the critic's loss is taken at."""
    prompt_weights: bool = False
    """Weigh the critic's loss of each prompt by 1 / max(std of its outcomes, floor), mean 1 (EasyPPO eq. 7)."""
    critic_minibatches: int | None = number(None, ge=1, unit="gradient steps")
    """Gradient steps of one critic pass; null takes as many as the policy's."""
    frozen: tuple[str, ...] = ()
    """Patterns of the critic's parameter names that are not trained, such as `*self_attn*` (SAO)."""
    overlong_in_target: bool = True
    """Whether the critic's target includes the overlong punishment; false keeps it for the policy (JustRL-II)."""
    privileged: str | None = None
    """A column of the data that stands before the response in the critic's input only, such as `answer`."""
    kind: Literal["gae"] = "gae"

    def __post_init__(self) -> None:
        check_ranges(self, "algorithm.credit")
        if self.baseline != "none" and self.gamma != 1:
            raise ConfigError(
                f"algorithm.credit.baseline={self.baseline} needs algorithm.credit.gamma=1, got {self.gamma}: the mean "
                "outcome of a group is not discounted."
            )
        if self.value_clip is not None and isinstance(self.head, SigmoidHead | HistogramHead):
            raise ConfigError(
                f"algorithm.credit.value_clip belongs to a squared error; the head {self.head.kind} learns by "
                "cross-entropy. Set value_clip to null, or take a linear or bounded head."
            )


@dataclass(frozen=True)
class GroupBaseline:
    """Credit without a critic: (R - mean) / std over the responses to one prompt (GRPO, DAPO eq. 9)."""

    std: Literal["population", "sample"] | None = "population"
    """Which standard deviation divides; null divides by nothing (Dr. GRPO)."""
    leave_one_out: bool = False
    """Whether the mean is that of the other responses of the group (RLOO)."""
    kind: Literal["group"] = "group"


Credit = Gae | GroupBaseline


# --------------------------------------------------------------------------- trust region


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


# --------------------------------------------------------------------------- sampler correction


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


# --------------------------------------------------------------------------- reward, KL, step sizes


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


Truncation = Literal["zero", "bootstrap", "drop", "drop-from-policy"]


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
    """Responses cut off at the length limit. `zero` ends the episode there with its verdict. `bootstrap` puts the
    critic's value of the state after the cut in the place of the failure. `drop` keeps them out of every loss (overlong
    filtering): the policy maximises the outcome of the responses that end, and may stop ending them.
    `drop-from-policy` keeps them out of the policy's loss only, and the critic learns that they fail (EasyPPO §3)."""
    sampler: SamplerCorrection = NoCorrection()
    """What is done where the engine's log-probabilities are not the trainer's."""
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
            if self.truncated in ("bootstrap", "drop-from-policy"):
                why = {
                    "bootstrap": "needs a critic to take the value from",
                    "drop-from-policy": "leaves the responses to the critic, and there is none",
                }[self.truncated]
                raise ConfigError(
                    f"algorithm.truncated: {self.truncated} {why}; use zero or drop, or take a preset with a critic."
                )
        elif self.credit.baseline in ("group", "fitted") and self.sampling.per_prompt < 2:
            raise ConfigError(
                f"algorithm.credit.baseline={self.credit.baseline} needs at least 2 responses per prompt, got "
                f"{self.sampling.per_prompt}: one response has no others to be measured against. Raise "
                "trainer.group_size, or set algorithm.credit.baseline to none or gated."
            )
        if isinstance(self.clip, RatioMask | ProbabilityBound) and not isinstance(self.sampler, NoCorrection):
            raise ConfigError(
                f"algorithm.clip.kind={self.clip.kind} already measures from the policy that sampled; "
                f"algorithm.sampler.kind={self.sampler.kind} would weigh for it a second time. Set "
                "algorithm.sampler.kind to none, or take the clip of PPO."
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
