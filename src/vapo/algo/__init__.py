"""The mathematics of value-based RL for language models: tensors in, tensors out, torch only.

Shapes: B responses of T tokens, N responses. `mask` is bool, True on trainable response tokens; it may have
holes and rows that are all False. NaN or inf outside the mask never reaches an output or a gradient. Low
precision in, float32 inside and out (float64 stays float64).

    advantages   gae, the rules for λ, whiten; group_advantages, informative_groups
    losses       clipped_surrogate, dual_clip, value_loss, kl_divergence: one number per token
    reduction    token_weights, sequence_weights, positive_weights; weighted_sum, masked
    shaping      terminal_rewards, soft_overlong_punishment
    diagnostics  explained_variance
    method, presets, techniques, sizes      the methods as data; import these modules directly, without torch
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vapo.algo.advantages import gae as gae
    from vapo.algo.advantages import group_advantages as group_advantages
    from vapo.algo.advantages import informative_groups as informative_groups
    from vapo.algo.advantages import lambdas as lambdas
    from vapo.algo.advantages import length_adaptive_lambda as length_adaptive_lambda
    from vapo.algo.advantages import relative_lambda as relative_lambda
    from vapo.algo.advantages import whiten as whiten
    from vapo.algo.diagnostics import explained_variance as explained_variance
    from vapo.algo.losses import clipped_surrogate as clipped_surrogate
    from vapo.algo.losses import dual_clip as dual_clip
    from vapo.algo.losses import kl_divergence as kl_divergence
    from vapo.algo.losses import value_loss as value_loss
    from vapo.algo.reduction import masked as masked
    from vapo.algo.reduction import positive_weights as positive_weights
    from vapo.algo.reduction import sequence_weights as sequence_weights
    from vapo.algo.reduction import token_weights as token_weights
    from vapo.algo.reduction import weighted_sum as weighted_sum
    from vapo.algo.shaping import soft_overlong_punishment as soft_overlong_punishment
    from vapo.algo.shaping import terminal_rewards as terminal_rewards

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

_HOMES = {
    "clipped_surrogate": "vapo.algo.losses",
    "dual_clip": "vapo.algo.losses",
    "explained_variance": "vapo.algo.diagnostics",
    "gae": "vapo.algo.advantages",
    "group_advantages": "vapo.algo.advantages",
    "informative_groups": "vapo.algo.advantages",
    "kl_divergence": "vapo.algo.losses",
    "lambdas": "vapo.algo.advantages",
    "length_adaptive_lambda": "vapo.algo.advantages",
    "masked": "vapo.algo.reduction",
    "positive_weights": "vapo.algo.reduction",
    "relative_lambda": "vapo.algo.advantages",
    "sequence_weights": "vapo.algo.reduction",
    "soft_overlong_punishment": "vapo.algo.shaping",
    "terminal_rewards": "vapo.algo.shaping",
    "token_weights": "vapo.algo.reduction",
    "value_loss": "vapo.algo.losses",
    "weighted_sum": "vapo.algo.reduction",
    "whiten": "vapo.algo.advantages",
}


def __getattr__(name: str) -> Any:
    """Load the functions on first use, because the methods as data and the settings do not need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vapo.algo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
