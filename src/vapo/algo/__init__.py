"""The mathematics of value-based RL for language models: tensors in, tensors out, torch only.

Shapes: B responses of T tokens, N responses. `mask` is bool, True on trainable response tokens; it may have
holes and rows that are all False. NaN or inf outside the mask never reaches an output or a gradient. Low
precision in, float32 inside and out (float64 stays float64).

    advantages   gae, the rules for λ, whiten; group_advantages, informative_groups
    losses       clipped_surrogate, dual_clip, value_loss, kl_divergence: one number per token
    reduction    token_weights, sequence_weights, positive_weights; weighted_sum, masked
    shaping      terminal_rewards, soft_overlong_punishment
    diagnostics  explained_variance
    presets      the methods as data (imported from there)
"""

from vapo.algo.advantages import (
    gae,
    group_advantages,
    informative_groups,
    lambdas,
    length_adaptive_lambda,
    relative_lambda,
    whiten,
)
from vapo.algo.diagnostics import explained_variance
from vapo.algo.losses import clipped_surrogate, dual_clip, kl_divergence, value_loss
from vapo.algo.reduction import masked, positive_weights, sequence_weights, token_weights, weighted_sum
from vapo.algo.shaping import soft_overlong_punishment, terminal_rewards

__all__ = [
    "clipped_surrogate",
    "dual_clip",
    "explained_variance",
    "gae",
    "group_advantages",
    "informative_groups",
    "kl_divergence",
    "lambdas",
    "length_adaptive_lambda",
    "masked",
    "positive_weights",
    "relative_lambda",
    "sequence_weights",
    "soft_overlong_punishment",
    "terminal_rewards",
    "token_weights",
    "value_loss",
    "weighted_sum",
    "whiten",
]
