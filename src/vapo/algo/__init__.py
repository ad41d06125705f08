"""The mathematics of value-based RL for language models: tensors in, tensors out, torch only.

Shapes: B responses of T tokens, N responses. `mask` is bool, True on trainable response tokens; it may have
holes and rows that are all False. NaN or inf outside the mask never reaches an output or a gradient. Low
precision in, float32 inside and out (float64 stays float64).

    advantages   gae, held_values, the rules for λ, whiten; group_advantages, informative_groups
    baselines    leave_one_out; mixture_sums, mixture_share
    heads        head_values, head_loss: how a critic's outputs become values, and what it minimises
    losses       clipped_surrogate, dual_clip, value_loss, kl_divergence: one number per token
    sampler      trust regions around the policy that sampled, weights that correct for it
    reduction    token_weights, sequence_weights, positive_weights, prompt_weights; weighted_sum, masked;
                 anchor_mask, turn_start_mask
    shaping      terminal_rewards, soft_overlong_punishment
    diagnostics  explained_variance, within_group_auc, between_share
    method, presets, techniques, sizes      the methods as data (imported from there, without torch)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vapo.algo.advantages import gae as gae
    from vapo.algo.advantages import group_advantages as group_advantages
    from vapo.algo.advantages import held_values as held_values
    from vapo.algo.advantages import informative_groups as informative_groups
    from vapo.algo.advantages import lambdas as lambdas
    from vapo.algo.advantages import length_adaptive_lambda as length_adaptive_lambda
    from vapo.algo.advantages import relative_lambda as relative_lambda
    from vapo.algo.advantages import share_lambda as share_lambda
    from vapo.algo.advantages import turn_lambda as turn_lambda
    from vapo.algo.advantages import whiten as whiten
    from vapo.algo.baselines import leave_one_out as leave_one_out
    from vapo.algo.baselines import mixture_share as mixture_share
    from vapo.algo.baselines import mixture_sums as mixture_sums
    from vapo.algo.diagnostics import between_share as between_share
    from vapo.algo.diagnostics import explained_variance as explained_variance
    from vapo.algo.diagnostics import within_group_auc as within_group_auc
    from vapo.algo.heads import bounded_value as bounded_value
    from vapo.algo.heads import head_loss as head_loss
    from vapo.algo.heads import head_values as head_values
    from vapo.algo.heads import histogram_target as histogram_target
    from vapo.algo.heads import histogram_value as histogram_value
    from vapo.algo.losses import clipped_surrogate as clipped_surrogate
    from vapo.algo.losses import dual_clip as dual_clip
    from vapo.algo.losses import kl_divergence as kl_divergence
    from vapo.algo.losses import value_loss as value_loss
    from vapo.algo.reduction import anchor_mask as anchor_mask
    from vapo.algo.reduction import masked as masked
    from vapo.algo.reduction import positive_weights as positive_weights
    from vapo.algo.reduction import prompt_weights as prompt_weights
    from vapo.algo.reduction import sequence_weights as sequence_weights
    from vapo.algo.reduction import token_weights as token_weights
    from vapo.algo.reduction import turn_start_mask as turn_start_mask
    from vapo.algo.reduction import weighted_sum as weighted_sum
    from vapo.algo.sampler import probability_bounded_surrogate as probability_bounded_surrogate
    from vapo.algo.sampler import ratio_masked_surrogate as ratio_masked_surrogate
    from vapo.algo.sampler import sampler_weights as sampler_weights
    from vapo.algo.shaping import soft_overlong_punishment as soft_overlong_punishment
    from vapo.algo.shaping import terminal_rewards as terminal_rewards

__all__ = [
    "anchor_mask",
    "between_share",
    "bounded_value",
    "clipped_surrogate",
    "dual_clip",
    "explained_variance",
    "gae",
    "group_advantages",
    "head_loss",
    "head_values",
    "held_values",
    "histogram_target",
    "histogram_value",
    "informative_groups",
    "kl_divergence",
    "lambdas",
    "leave_one_out",
    "length_adaptive_lambda",
    "masked",
    "mixture_share",
    "mixture_sums",
    "positive_weights",
    "probability_bounded_surrogate",
    "prompt_weights",
    "ratio_masked_surrogate",
    "relative_lambda",
    "sampler_weights",
    "sequence_weights",
    "share_lambda",
    "soft_overlong_punishment",
    "terminal_rewards",
    "token_weights",
    "turn_lambda",
    "turn_start_mask",
    "value_loss",
    "weighted_sum",
    "whiten",
    "within_group_auc",
]

_MODULES = ("advantages", "baselines", "diagnostics", "heads", "losses", "reduction", "sampler", "shaping")


def __getattr__(name: str) -> Any:
    """The functions load on first use: the methods as data, and settings with them, need no torch."""
    if name in __all__:
        for module in _MODULES:
            if found := getattr(import_module(f"vapo.algo.{module}"), name, None):
                return found
    raise AttributeError(f"module 'vapo.algo' has no attribute {name!r}")
