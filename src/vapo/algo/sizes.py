"""The numbers that adapt a method to the size of a model and a task, each with one name in the settings.

A size is set as `trainer.<name>`, `algorithm.alpha` or `algorithm.k`. The method's field is derived from it in the same
way for every preset and cannot be set directly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any

from vapo.algo.method import Algorithm, Gae, LengthAdaptive, Share
from vapo.errors import ConfigError, counted

NAMES = {
    "sampling.prompts": "trainer.samples_per_step",
    "sampling.per_prompt": "trainer.group_size",
    "optimization.minibatch": "trainer.minibatch_size",
    "optimization.actor_lr": "trainer.actor_lr",
    "optimization.critic_lr": "trainer.critic_lr",
    "optimization.warmup_steps": "trainer.warmup_steps",
    "credit.pretraining_steps": "trainer.pretraining_steps",
    "credit.policy_lambda.alpha": "algorithm.alpha",
    "credit.policy_lambda.k": "algorithm.k",
}
"""The name in the settings of each method field that holds a size."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a method; None keeps the preset's number."""

    samples_per_step: int | None = None
    group_size: int | None = None
    minibatch_size: int | None = None
    actor_lr: float | None = None
    critic_lr: float | None = None
    warmup_steps: int | None = None
    pretraining_steps: int | None = None
    alpha: float | None = None
    k: float | None = None
    """The share of the outcome that reaches the first token; it makes λ one by share."""


SAMPLES, GROUP, MINIBATCH = 128, 8, 32
"""Default batch sizes for one machine; the paper's are 8,192, 16 and 512."""


def with_batch(sizes: Sizes) -> Sizes:
    """The sizes with missing samples, group and minibatch filled in: divisors of the samples near the defaults.

    >>> with_batch(Sizes(group_size=10)).minibatch_size, with_batch(Sizes(samples_per_step=100)).group_size
    (26, 10)
    """
    group, minibatch = sizes.group_size, sizes.minibatch_size
    samples = sizes.samples_per_step
    if samples is None:
        unit = lcm(group or 1, minibatch or 1)
        several = range(unit, max(2 * SAMPLES, 4 * unit) + 1, unit)
        fit = [n for n in several if _fits(n, group, GROUP) and _fits(n, minibatch, MINIBATCH)]
        samples = min(fit, key=lambda n: abs(n - SAMPLES), default=unit)
    group = group or _divisor_near(GROUP, samples)
    minibatch = minibatch or _divisor_near(MINIBATCH, samples)
    return replace(sizes, samples_per_step=samples, group_size=group, minibatch_size=minibatch)


def _fits(samples: int, chosen: int | None, default: int) -> bool:
    """Whether the samples can be divided into parts of the chosen size, or near the default."""
    return samples % (chosen or _divisor_near(default, samples)) == 0


def _divisor_near(default: int, samples: int) -> int:
    """The divisor of the samples nearest to the default; the default where all are over twice as large or small.

    Then the check of the sizes names both: a minibatch of 1 would train at another scale without a word.
    """
    if samples <= default:
        return samples
    near = [size for size in range(math.ceil(default / 2), 2 * default + 1) if samples % size == 0]
    return min(near, key=lambda size: abs(math.log(size / default)), default=default)


def scaled(algorithm: Algorithm, sizes: Sizes) -> Algorithm:
    """The same method with other sizes. A size has an effect only if the method uses it: the group size if it
    samples groups, alpha if λ is length-adaptive, k if it has a λ, pretraining steps if it pretrains.

    Raises ConfigError if the group size does not divide the samples, or for alpha and k together.
    """
    sampling, credit, optimization = algorithm.sampling, algorithm.credit, algorithm.optimization
    per_prompt = sampling.per_prompt
    if sizes.group_size is not None and per_prompt > 1:
        per_prompt = sizes.group_size
    total = sampling.samples if sizes.samples_per_step is None else sizes.samples_per_step
    if per_prompt < 1 or total % per_prompt:
        raise ConfigError(
            f"The group size ({counted(per_prompt, 'response')} per prompt) must divide the "
            f"{counted(total, 'response')} of a step; change trainer.group_size or trainer.samples_per_step."
        )
    sampling = replace(sampling, prompts=total // per_prompt, per_prompt=per_prompt)
    if sizes.alpha is not None and sizes.k is not None:
        raise ConfigError(
            f"algorithm.alpha={sizes.alpha:g} and algorithm.k={sizes.k:g} are two rules for one lambda. Set one of "
            "them, and the other to null."
        )
    if isinstance(credit, Gae):
        if sizes.k is not None:
            credit = replace(credit, policy_lambda=Share(sizes.k))
        if sizes.alpha is not None and isinstance(credit.policy_lambda, LengthAdaptive):
            credit = replace(credit, policy_lambda=LengthAdaptive(sizes.alpha))
        if sizes.pretraining_steps is not None and credit.pretraining_steps > 0:
            credit = replace(credit, pretraining_steps=sizes.pretraining_steps)
    numbers = {
        "minibatch": sizes.minibatch_size,
        "actor_lr": sizes.actor_lr,
        "critic_lr": sizes.critic_lr,
        "warmup_steps": sizes.warmup_steps,
    }
    optimization = replace(optimization, **{name: value for name, value in numbers.items() if value is not None})
    return replace(algorithm, sampling=sampling, credit=credit, optimization=optimization)


def sizes_of(algorithm: Algorithm) -> Sizes:
    """The sizes of a method; None for a number that it does not have."""
    sampling, credit, optimization = algorithm.sampling, algorithm.credit, algorithm.optimization
    gae = credit if isinstance(credit, Gae) else None
    rule = gae.policy_lambda if gae else None
    return Sizes(
        samples_per_step=sampling.samples,
        group_size=sampling.per_prompt,
        minibatch_size=optimization.minibatch,
        actor_lr=optimization.actor_lr,
        critic_lr=optimization.critic_lr if gae else None,
        warmup_steps=optimization.warmup_steps,
        pretraining_steps=gae.pretraining_steps if gae else None,
        alpha=rule.alpha if isinstance(rule, LengthAdaptive) else None,
        k=rule.k if isinstance(rule, Share) else None,
    )


def alpha_is_a_size(algorithm: Algorithm) -> bool:
    """Whether the method's α has to follow the length of the responses.

    VAPO's 0.05 belongs to thousands of tokens: of a short response it lets the share exp(-1/α) = 2e-9 of the outcome
    reach the first token. An α that lets through a good part of it (SAO's 1.5, BPCO's 0.4) holds at every length.
    """
    rule = algorithm.credit.policy_lambda if isinstance(algorithm.credit, Gae) else None
    return isinstance(rule, LengthAdaptive) and math.exp(-1 / rule.alpha) < 1e-3


def without_sizes(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A method's nested fields as plain data, without the fields in `NAMES`."""
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if path in NAMES:
            continue
        if isinstance(value, Mapping):
            value = without_sizes(value, f"{path}.")
            if not value:
                continue
        kept[name] = value
    return kept


def fields_of(algorithm: Algorithm) -> dict[str, Any]:
    """The method's fields without the sizes, as nested plain data."""
    return without_sizes(asdict(algorithm))
