"""The methods with their papers' numbers; `without` takes a technique away.

A comment marks each number that a paper leaves open. `vapo.algo.sizes` adapts a method to another size.

Sources: VAPO arXiv:2504.05118 §5.1 and Table 1; VC-PPO arXiv:2503.01491; DAPO arXiv:2503.14476 §4.1;
GRPO as trained in DeepSeek-R1-Zero, arXiv:2501.12948; RLOO arXiv:2402.14740; Open-Reasoner-Zero arXiv:2503.24290 and
its code; SAO arXiv:2607.07508; BPCO arXiv:2608.23566; EasyPPO arXiv:2609.36802; JustRL-II by its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from vapo.algo.method import (
    Algorithm,
    Band,
    BoundedHead,
    Clip,
    DualClip,
    Fixed,
    Gae,
    GroupBaseline,
    Kl,
    LengthAdaptive,
    LinearHead,
    Optimization,
    ProbabilityBound,
    RatioMask,
    Reward,
    Sampling,
    Share,
)
from vapo.algo.techniques import REMEDIES, TECHNIQUES, put_back

__all__ = [
    "BPCO",
    "DAPO",
    "EASYPPO",
    "GRPO",
    "JUSTRL2",
    "ORZ",
    "PPO",
    "PRESETS",
    "REMEDIES",
    "RLOO",
    "SAO",
    "TECHNIQUES",
    "VAPO",
    "VAPO2",
    "VC_PPO",
    "without",
    "without_all",
]

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

RLOO = Algorithm(  # REINFORCE with the mean of the others for baseline
    sampling=Sampling(prompts=512, per_prompt=16),  # the paper's are small; GRPO's, to compare with
    credit=GroupBaseline(std=None, leave_one_out=True),
    clip=Clip(low=0.2, high=0.2),  # the paper takes one gradient step a rollout, where clipping does nothing
    reduction="token",  # one sum over the response's tokens
    optimization=Optimization(minibatch=512, actor_lr=1e-6, warmup_steps=20),  # not comparable; ours
)

ORZ = Algorithm(  # Open-Reasoner-Zero, by its code
    sampling=Sampling(prompts=128, per_prompt=64),
    credit=Gae(policy_lambda=Fixed(1.0), critic_lambda=Fixed(1.0), critic_minibatches=12, whiten=True),
    clip=Clip(low=0.2, high=0.2),
    reduction="token",  # not confirmed
    optimization=Optimization(minibatch=8192, actor_lr=1e-6, critic_lr=5e-6, warmup_steps=50),  # one policy update
)

SAO = Algorithm(  # single-rollout asynchronous optimisation; numbers of its mathematics run
    sampling=Sampling(prompts=128, per_prompt=1),
    credit=Gae(
        policy_lambda=LengthAdaptive(alpha=1.5),
        critic_lambda=Fixed(1.0),
        pretraining_steps=10,
        critic_updates=2,
        # attention of the critic is frozen for mixtures of experts only: `credit.frozen`
    ),
    clip=RatioMask(low=0.7, high=6.0),
    reduction="token",  # not confirmed
    optimization=Optimization(minibatch=128, actor_lr=1e-6, critic_lr=5e-6, warmup_steps=10),  # warm-up not confirmed
)

BPCO = Algorithm(
    sampling=Sampling(prompts=1024, per_prompt=1),
    credit=Gae(
        policy_lambda=LengthAdaptive(alpha=0.4),
        critic_lambda=Fixed(1.0),
        pretraining_steps=15,
        head=BoundedHead(),  # where it starts is not stated
    ),
    clip=ProbabilityBound(eps=0.2),  # a convention, not confirmed
    reduction="token",  # not confirmed
    optimization=Optimization(minibatch=1024, actor_lr=1e-6, critic_lr=1e-5, warmup_steps=15),  # minibatch: ours
)

EASYPPO = Algorithm(  # §3 and table C.1
    sampling=Sampling(prompts=32, per_prompt=16),
    credit=Gae(
        policy_lambda=Fixed(1.0),
        critic_lambda=Fixed(1.0),
        pretraining_steps=30,
        critic_minibatches=4,
        value_clip=0.2,
        prompt_weights=True,
        whiten=True,  # verl's default
    ),
    clip=DualClip(low=0.2, high=0.28, c=3.0),
    reduction="token",
    kl=Kl(coef=1e-3),
    truncated="drop-from-policy",
    optimization=Optimization(minibatch=512, actor_lr=1e-6, critic_lr=2e-6, warmup_steps=20),  # warm-up not stated
)

JUSTRL2 = Algorithm(  # by its code; the one preset whose groups of equal outcomes the paper drops and we keep
    sampling=Sampling(prompts=60, per_prompt=8),
    credit=Gae(
        policy_lambda=Share(k=0.5),
        critic_lambda=Fixed(1.0),
        pretraining_steps=30,
        head=LinearHead(start="mean"),  # a bias of .52 there: the mean outcome
        value_clip=0.2,
        overlong_in_target=False,
    ),
    clip=Clip(low=0.2, high=0.28),
    reduction="token",
    reward=Reward(overlong_cache=0.2),  # DAPO's; its own is not known
    sampler=Band(low=0.5, high=5.0),
    optimization=Optimization(minibatch=480, actor_lr=1e-6, critic_lr=5e-6, warmup_steps=20),  # warm-up: ours
)

VAPO2 = replace(  # ours: VAPO with a residual critic; not told apart from VAPO at the end, see docs/reproduction.md
    VAPO,
    credit=replace(
        VAPO.credit,
        baseline="group",  # NVIDIA's branch, TETHER: a critic that has learned nothing leaves the group's mean
        policy_lambda=Share(k=0.135),  # JustRL-II's rule; its .5 lost to alpha .5, which is .135 for long responses
        head=LinearHead(start="mean"),  # JustRL-II; no effect here: the mean residual is 0
    ),
    # EasyPPO's `drop-from-policy` lost to `zero` here, where two fifths of the responses are cut off at first
)

PRESETS: dict[str, Algorithm] = {
    "ppo": PPO,
    "vc-ppo": VC_PPO,
    "grpo": GRPO,
    "dapo": DAPO,
    "vapo": VAPO,
    "rloo": RLOO,
    "orz": ORZ,
    "sao": SAO,
    "bpco": BPCO,
    "easyppo": EASYPPO,
    "justrl2": JUSTRL2,
    "vapo2": VAPO2,
}


def without(algorithm: Algorithm, technique: str) -> Algorithm:
    """The algorithm with one technique put back to plain PPO, or a remedy of VAPO 2 to VAPO; the same algorithm where
    it has that already. Raises ConfigError for an unknown name, or a method without the field."""
    return put_back(algorithm, technique, ppo=PPO, vapo=VAPO)


def without_all(algorithm: Algorithm, techniques: Sequence[str]) -> Algorithm:
    """`without` for each name; remedies of VAPO 2 first, because group-sampling cannot go before the group baseline."""
    return reduce(without, sorted(techniques, key=lambda name: name not in REMEDIES), algorithm)
