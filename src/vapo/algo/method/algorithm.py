"""`Algorithm`: a method, complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.algo.method.credit_sources import Credit, Gae, GroupBaseline
from vapo.algo.method.sampler_corrections import NoCorrection, SamplerCorrection
from vapo.algo.method.step_parts import Kl, Optimization, Reward, Sampling
from vapo.algo.method.trust_regions import ProbabilityBound, RatioMask, TrustRegion
from vapo.errors import ConfigError, counted
from vapo.ranges import check_ranges, number

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
    critic's value of the state after the cut in the place of the failure; it is for verdicts of one turn, since a score
    may be earned before the cut, and no critic learns states between turns. `drop` keeps them out of every loss
    (overlong filtering): the policy maximises the outcome of the responses that end, and may stop ending them.
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
