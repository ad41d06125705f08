"""The methods with their papers' numbers: PPO, VC-PPO, GRPO, DAPO, VAPO; `without` removes a technique.

A comment marks each number that a paper leaves open. `vapo.algo.sizes` adapts a method to another size.

Sources: VAPO arXiv:2504.05118 §5.1 and Table 1; VC-PPO arXiv:2503.01491; DAPO arXiv:2503.14476 §4.1;
GRPO as trained in DeepSeek-R1-Zero, arXiv:2501.12948.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from vapo.algo.method import (
    Algorithm,
    Clip,
    Fixed,
    Gae,
    GroupBaseline,
    Kl,
    LengthAdaptive,
    Optimization,
    Reward,
    Sampling,
)
from vapo.algo.techniques import TECHNIQUES, put_back

__all__ = ["DAPO", "GRPO", "PPO", "PRESETS", "TECHNIQUES", "VAPO", "VC_PPO", "without", "without_all"]

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


def without(algorithm: Algorithm, technique: str) -> Algorithm:
    """The algorithm with one technique replaced by plain PPO's. Raises ConfigError if it has no such technique."""
    return put_back(algorithm, technique, donor=PPO)


def without_all(algorithm: Algorithm, techniques: Sequence[str]) -> Algorithm:
    """The algorithm after `without` for each of the techniques."""
    return reduce(without, techniques, algorithm)
