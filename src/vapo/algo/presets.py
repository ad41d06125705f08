"""The methods as data: PPO, VC-PPO, GRPO, DAPO, VAPO, and VAPO with any technique taken away.

One technique is one field, so an ablation is one copied field (`without`). The numbers are the papers';
a comment marks each one that a paper leaves open. `scaled` puts them at another size, the same way for
every method.

Sources: VAPO arXiv:2504.05118 §5.1 and Table 1; VC-PPO arXiv:2503.01491; DAPO arXiv:2503.14476 §4.1;
GRPO as trained in DeepSeek-R1-Zero, arXiv:2501.12948.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import reduce
from math import inf
from typing import Any, Literal

from vapo.errors import ConfigError


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message + ".")


# --------------------------------------------------------------------------- lambda rules


@dataclass(frozen=True)
class Fixed:
    """The same λ for every response."""

    value: float
    """λ in [0, 1]."""
    rule: Literal["fixed"] = "fixed"

    def __post_init__(self) -> None:
        _check(
            0 <= self.value <= 1,
            f"a fixed lambda (credit.policy_lambda or credit.critic_lambda) must lie in [0, 1], got {self.value}",
        )


@dataclass(frozen=True)
class LengthAdaptive:
    """λ(l) = 1 - 1/(α·l), clamped to [0, 1] (VAPO eq. 5)."""

    alpha: float
    """α > 0; λ is 0 for responses of up to 1/α tokens. The paper's 0.05 is meant for thousands of tokens."""
    rule: Literal["length_adaptive"] = "length_adaptive"

    def __post_init__(self) -> None:
        _check(0 < self.alpha < inf, f"alpha of a length-adaptive lambda must be positive and finite, got {self.alpha}")


@dataclass(frozen=True)
class Relative:
    """λ(l) = q^(1/(l-1)): the first token feels the outcome with weight q at every length (AReaL)."""

    q: float
    """Weight of the outcome on the first token, in (0, 1]."""
    rule: Literal["relative"] = "relative"

    def __post_init__(self) -> None:
        _check(0 < self.q <= 1, f"q must lie in (0, 1], got {self.q}")


Lambda = Fixed | LengthAdaptive | Relative


# --------------------------------------------------------------------------- the fields of a method


@dataclass(frozen=True)
class Sampling:
    """How many responses one rollout step draws, and from how many prompts."""

    prompts: int
    """Prompts per rollout step."""
    per_prompt: int
    """Responses per prompt: the group size."""
    refill_rounds: int = 0
    """Dynamic sampling (DAPO §3.2): groups that are all right or all wrong are dropped and replaced by new
    prompts, in at most this many further rounds; 0 switches it off."""

    def __post_init__(self) -> None:
        _check(self.prompts >= 1, f"sampling.prompts must be at least 1, got {self.prompts}")
        _check(self.per_prompt >= 1, f"sampling.per_prompt must be at least 1, got {self.per_prompt}")
        _check(self.refill_rounds >= 0, f"sampling.refill_rounds must not be negative, got {self.refill_rounds}")
        _check(
            self.refill_rounds == 0 or self.per_prompt > 1,
            "dynamic sampling (sampling.refill_rounds > 0) needs at least 2 responses per prompt: "
            "a single response is always all right or all wrong. Raise sampling.per_prompt",
        )

    @property
    def samples(self) -> int:
        """Responses per rollout step."""
        return self.prompts * self.per_prompt


@dataclass(frozen=True)
class Gae:
    """Credit from a critic: generalised advantage estimation, decoupled (VC-PPO) and pretrained (VAPO §4.1)."""

    policy_lambda: Lambda
    """λ of the advantages the policy learns from."""
    critic_lambda: Lambda
    """λ of the returns the critic learns; 1 gives Monte-Carlo returns."""
    gamma: float = 1.0
    """Discount γ in [0, 1]."""
    pretraining_steps: int = 0
    """Rollout steps of value pretraining with the fixed initial policy; N means exactly N."""
    critic_updates: int = 1
    """Critic passes over the step's minibatches for each policy pass (SAO uses 2)."""
    value_clip: float | None = None
    """PPO value clipping range; None is off, as in the papers."""
    critic_reduction: Literal["token", "sequence"] = "token"
    """Who counts the same in the critic's loss; not stated in the papers."""
    whiten: bool = False
    """Normalise the policy's advantages to mean 0, variance 1 over the step; never the critic's targets."""
    kind: Literal["gae"] = "gae"

    def __post_init__(self) -> None:
        _check(0 <= self.gamma <= 1, f"gamma must lie in [0, 1], got {self.gamma}")
        _check(self.pretraining_steps >= 0, f"pretraining_steps must not be negative, got {self.pretraining_steps}")
        _check(self.critic_updates >= 1, f"critic_updates must be at least 1, got {self.critic_updates}")
        _check(self.value_clip is None or self.value_clip > 0, f"value_clip must be positive, got {self.value_clip}")


@dataclass(frozen=True)
class GroupBaseline:
    """Credit without a critic: (R - mean) / std over the responses to one prompt (GRPO, DAPO eq. 9)."""

    std: Literal["population", "sample"] | None = "population"
    """Which standard deviation divides; None divides by nothing (Dr. GRPO)."""
    kind: Literal["group"] = "group"


Credit = Gae | GroupBaseline


@dataclass(frozen=True)
class Clip:
    """Trust region of the surrogate: ρ is clipped to [1 - low, 1 + high]; `dual` bounds it for A < 0."""

    low: float
    high: float
    dual: float | None = None
    """Dual clip c > 1: the objective is at least c·A where A < 0 (arXiv:1912.09729); None is off."""

    def __post_init__(self) -> None:
        _check(0 <= self.low <= 1, f"clip.low must lie in [0, 1] (1 - low bounds a probability ratio), got {self.low}")
        _check(self.high >= 0, f"clip.high must not be negative, got {self.high}")
        _check(self.dual is None or self.dual > 1, f"clip.dual must be greater than 1, got {self.dual}")


@dataclass(frozen=True)
class Reward:
    """What a verdict is worth, before any shaping."""

    right: float = 1.0
    wrong: float = 0.0
    overlong_cache: float = 0.0
    """Soft overlong punishment (DAPO eq. 13): L_cache as a fraction of the length limit; 0 is off."""

    def __post_init__(self) -> None:
        _check(self.right > self.wrong, f"reward.right ({self.right}) must exceed reward.wrong ({self.wrong})")
        _check(0 <= self.overlong_cache < 1, f"reward.overlong_cache must lie in [0, 1), got {self.overlong_cache}")


@dataclass(frozen=True)
class Kl:
    """A KL penalty to a reference policy, as a loss term (never in the reward as well)."""

    coef: float = 0.0
    """Weight of the term; 0 is off and loads no reference."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    refresh_every: int = 0
    """Gradient steps after which the reference becomes the current policy (R1-Zero: 400); 0 is never."""

    def __post_init__(self) -> None:
        _check(self.coef >= 0, f"kl.coef must not be negative, got {self.coef}")
        _check(self.refresh_every >= 0, f"kl.refresh_every must not be negative, got {self.refresh_every}")


@dataclass(frozen=True)
class Optimization:
    """Step sizes. One rollout step makes samples / minibatch gradient steps."""

    minibatch: int = 512
    """Responses per gradient step."""
    actor_lr: float = 1e-6
    critic_lr: float = 2e-6
    warmup_steps: int = 20
    """Rollout steps over which the learning rates rise linearly from 0; constant afterwards."""
    epochs: int = 1
    """Passes over each step's responses."""

    def __post_init__(self) -> None:
        _check(self.minibatch >= 1, f"minibatch must be at least 1, got {self.minibatch}")
        _check(self.actor_lr >= 0, f"actor_lr must not be negative, got {self.actor_lr}")
        _check(self.critic_lr >= 0, f"critic_lr must not be negative, got {self.critic_lr}")
        _check(self.warmup_steps >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}")
        _check(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")


Truncation = Literal["zero", "bootstrap", "drop"]


@dataclass(frozen=True)
class Algorithm:
    """A method, complete: whatever is not here does not change what is learned."""

    sampling: Sampling
    credit: Credit
    clip: Clip
    reduction: Literal["token", "sequence"]
    """Who counts the same in the policy loss: every token of the minibatch, or every response."""
    positive_lm: float = 0.0
    """μ, the weight of the language-model loss on verified right responses (VAPO eq. 10)."""
    reward: Reward = Reward()
    kl: Kl = Kl()
    truncated: Truncation = "zero"
    """Responses cut off at the length limit: `zero` ends the episode there with its verdict; `bootstrap` puts
    the critic's value of the state after the cut in the place of the failure; `drop` keeps them out of every
    loss, the critic's too (overlong filtering)."""
    optimization: Optimization = Optimization()

    def __post_init__(self) -> None:
        _check(self.positive_lm >= 0, f"positive_lm must not be negative, got {self.positive_lm}")
        if isinstance(self.credit, GroupBaseline):
            _check(
                self.sampling.per_prompt >= 2,
                f"a group baseline needs at least 2 responses per prompt, got {self.sampling.per_prompt}: with one, "
                "the group mean is the reward itself and every advantage is 0. Raise the group size, or use a critic",
            )
            _check(
                self.truncated != "bootstrap",
                "truncated: bootstrap needs a critic to take the value from; use zero or drop, or take a critic",
            )
        _check(
            self.sampling.samples % self.optimization.minibatch == 0,
            f"the minibatch ({self.optimization.minibatch} responses) must divide the {self.sampling.samples} "
            f"responses of a step ({self.sampling.prompts} prompts x {self.sampling.per_prompt}); "
            "change trainer.minibatch_size",
        )


# --------------------------------------------------------------------------- the presets

PPO = Algorithm(  # "vanilla PPO" of VAPO Table 1; numbers of VAPO §5.1
    sampling=Sampling(prompts=8192, per_prompt=1),
    credit=Gae(policy_lambda=Fixed(0.95), critic_lambda=Fixed(0.95), pretraining_steps=0),
    clip=Clip(low=0.2, high=0.2),
    reduction="sequence",  # VAPO eq. 6
    positive_lm=0.0,
    reward=Reward(right=1.0, wrong=0.0),  # VAPO §3.3 "such as 0 and 1"; which one it trained with is not stated
    kl=Kl(coef=0.0),  # not stated; DAPO §2.3 removes it
    truncated="zero",  # not stated
    optimization=Optimization(minibatch=512, actor_lr=1e-6, critic_lr=2e-6, warmup_steps=20, epochs=1),
    # the length of the warm-up and the single epoch are DAPO's (§4.1); VAPO only says "warm-up, constant"
)

VC_PPO = replace(
    PPO,
    reward=Reward(right=1.0, wrong=-1.0),  # VC-PPO: +1 / -1 by a rule
    credit=replace(
        PPO.credit,
        critic_lambda=Fixed(1.0),  # VC-PPO: decoupled, critic 1.0, actor 0.95
        pretraining_steps=100,  # VC-PPO: 100 best, worse beyond about 150
    ),
    # batch, learning rates and reduction of VC-PPO are not confirmed: PPO's are kept
)

VAPO = replace(
    PPO,
    sampling=Sampling(prompts=512, per_prompt=16),  # VAPO §5.1 item 7
    credit=replace(
        PPO.credit,
        policy_lambda=LengthAdaptive(alpha=0.05),  # item 3, eq. 5
        critic_lambda=Fixed(1.0),  # item 2
        pretraining_steps=50,  # item 1
    ),
    clip=Clip(low=0.2, high=0.28),  # item 4
    reduction="token",  # item 5, eq. 7
    positive_lm=0.1,  # item 6, eq. 10
)

GRPO = Algorithm(  # as DeepSeek-R1-Zero was trained
    sampling=Sampling(prompts=512, per_prompt=16),  # a rollout of 8,192 outputs in groups of 16
    credit=GroupBaseline(std="population"),
    clip=Clip(low=0.2, high=0.2),  # not confirmed for R1-Zero: PPO's
    reduction="sequence",
    kl=Kl(coef=0.001, estimator="k3", refresh_every=400),
    optimization=Optimization(minibatch=512, actor_lr=3e-6, warmup_steps=20),  # warm-up not stated
)

DAPO = Algorithm(  # DAPO §3 and §4.1
    sampling=Sampling(prompts=512, per_prompt=16, refill_rounds=9),  # the bound on refilling is ours
    credit=GroupBaseline(std="population"),  # eq. 9
    clip=Clip(low=0.2, high=0.28),
    reduction="token",
    reward=Reward(right=1.0, wrong=-1.0, overlong_cache=0.2),  # eq. 7; eq. 13 with 4,096 of 20,480 tokens
    optimization=Optimization(minibatch=512, actor_lr=1e-6, warmup_steps=20),
)

PRESETS: dict[str, Algorithm] = {"ppo": PPO, "vc-ppo": VC_PPO, "grpo": GRPO, "dapo": DAPO, "vapo": VAPO}

TECHNIQUES: dict[str, str] = {
    "value-pretraining": "credit.pretraining_steps",
    "decoupled-gae": "credit.critic_lambda",
    "length-adaptive-gae": "credit.policy_lambda",
    "token-level-loss": "reduction",
    "clip-higher": "clip",
    "positive-lm": "positive_lm",
    "group-sampling": "sampling",
}
"""Each of VAPO's seven techniques, and the one field that holds it."""


# --------------------------------------------------------------------------- operations on methods


def without(algorithm: Algorithm, technique: str) -> Algorithm:
    """The algorithm with one technique put back to plain PPO.

    Raises ConfigError for a name that is not in `TECHNIQUES`, or a method that has no such field (GRPO has
    no λ to put back).
    """
    if technique not in TECHNIQUES:
        close = get_close_matches(technique, TECHNIQUES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"Unknown technique {technique!r}{hint} VAPO's seven are: {', '.join(TECHNIQUES)}.")
    path = TECHNIQUES[technique]
    if path.startswith("credit.") and not isinstance(algorithm.credit, Gae):
        raise ConfigError(f"{technique} belongs to methods with a critic; this one has a group baseline.")
    if technique == "group-sampling" and isinstance(algorithm.credit, GroupBaseline):
        raise ConfigError("Without group-sampling a group baseline has nothing to compare; use a preset with a critic.")
    return _graft(algorithm, path, donor=PPO)


def without_all(algorithm: Algorithm, techniques: list[str] | tuple[str, ...]) -> Algorithm:
    """`without`, for each name in turn."""
    return reduce(without, techniques, algorithm)


def scaled(
    algorithm: Algorithm,
    *,
    samples: int | None = None,
    group: int | None = None,
    alpha: float | None = None,
    pretraining_steps: int | None = None,
    minibatch: int | None = None,
    actor_lr: float | None = None,
    critic_lr: float | None = None,
    warmup_steps: int | None = None,
) -> Algorithm:
    """The same method at another size. A number replaces the paper's only where the method uses it at all:
    `group` where it samples groups, `alpha` where λ is length-adaptive, `pretraining_steps` where it pretrains.

    Raises ConfigError if the group size does not divide the samples.
    """
    sampling, credit, optimization = algorithm.sampling, algorithm.credit, algorithm.optimization
    per_prompt = group if group is not None and sampling.per_prompt > 1 else sampling.per_prompt
    total = sampling.samples if samples is None else samples
    _check(per_prompt >= 1, f"the group size must be at least 1, got {per_prompt}")
    _check(
        total % per_prompt == 0,
        f"the group size ({per_prompt} responses per prompt) must divide the {total} responses of a step; "
        "change trainer.group_size or trainer.samples_per_step",
    )
    sampling = replace(sampling, prompts=total // per_prompt, per_prompt=per_prompt)
    if isinstance(credit, Gae):
        if alpha is not None and isinstance(credit.policy_lambda, LengthAdaptive):
            credit = replace(credit, policy_lambda=LengthAdaptive(alpha))
        if pretraining_steps is not None and credit.pretraining_steps > 0:
            credit = replace(credit, pretraining_steps=pretraining_steps)
    numbers = {"minibatch": minibatch, "actor_lr": actor_lr, "critic_lr": critic_lr, "warmup_steps": warmup_steps}
    optimization = replace(optimization, **{k: v for k, v in numbers.items() if v is not None})
    return replace(algorithm, sampling=sampling, credit=credit, optimization=optimization)


def _graft(node: Any, path: str, donor: Any) -> Any:
    """`node` with the field at the dotted `path` copied from `donor`."""
    head, _, rest = path.partition(".")
    assert head in {f.name for f in fields(node)}
    value = getattr(donor, head)
    return replace(node, **{head: _graft(getattr(node, head), rest, value) if rest else value})
