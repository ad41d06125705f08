"""Where an advantage comes from: a critic, or the mean of the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vapo.algo.method.lambda_rules import Lambda
from vapo.algo.method.value_heads import Head, HistogramHead, LinearHead, SigmoidHead
from vapo.algo.method.value_tokens import AllTokens, ValueTokens
from vapo.errors import ConfigError
from vapo.ranges import check_ranges, number


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
    """PPO value clipping range, in reward units; null is off, as in VAPO and VC-PPO; EasyPPO and JustRL-II have 0.2."""
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
        if "*" in self.frozen:
            raise ConfigError(
                "algorithm.credit.frozen=['*'] freezes the whole critic, which then learns nothing. Name a part, such "
                "as '*self_attn*'."
            )
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
    """Whether the mean is that of the other responses of the group (RLOO); then nothing divides, so std is null."""
    kind: Literal["group"] = "group"

    def __post_init__(self) -> None:
        if self.leave_one_out and self.std is not None:
            raise ConfigError(
                f"algorithm.credit.leave_one_out=true divides by no deviation, and algorithm.credit.std is {self.std}. "
                "Set algorithm.credit.std to null, or leave_one_out to false."
            )


Credit = Gae | GroupBaseline
