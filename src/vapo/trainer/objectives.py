"""The losses of the networks. Weights are fixed over the whole minibatch, then micro-losses are summed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vapo.algo import (
    anchor_mask,
    clipped_surrogate,
    dual_clip,
    head_loss,
    head_values,
    kl_divergence,
    masked,
    positive_weights,
    probability_bounded_surrogate,
    ratio_masked_surrogate,
    sequence_weights,
    token_weights,
    turn_start_mask,
    weighted_sum,
)
from vapo.algo.method import (
    Algorithm,
    AllTokens,
    Anchors,
    Clip,
    DualClip,
    Gae,
    ProbabilityBound,
    RatioMask,
    TurnStarts,
)
from vapo.models.networks import Critic, Policy
from vapo.trainer.batch import Batch

REDUCTIONS = {"token": token_weights, "sequence": sequence_weights}


@dataclass(frozen=True)
class Part:
    """What some rows of a minibatch add to its loss and figures."""

    loss: Tensor
    figures: dict[str, Tensor]
    """Shares of the minibatch's figures: all rows' add up."""
    values: Tensor | None = None
    """The critic's V of the rows' learned tokens (B, T), without a gradient."""


class Objective(Protocol):
    """A loss that is a weighted sum over tokens, the weights known before the minibatch is cut."""

    @property
    def module(self) -> torch.nn.Module: ...

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """Named (B, T) weights, each summing to 1 over the minibatch (or to 0 if its set is empty); those of a
        critic with prompt weights sum to 1 over the rollout on average."""
        ...

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> Part:
        """The rows' part of the minibatch's loss."""
        ...


@dataclass(frozen=True)
class PolicyObjective:
    """L = Σ w·L_clip + μ·Σ w⁺·(-log π) + β·Σ w·KL   (VAPO eq. 7-10; KL as a loss term: GRPO)."""

    policy: Policy
    algorithm: Algorithm

    @property
    def module(self) -> torch.nn.Module:
        return self.policy.model

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """`surrogate` by the method's reduction; `positive` over the tokens of verified right responses; `token` over
        all learned tokens."""
        return {
            "surrogate": REDUCTIONS[self.algorithm.reduction](minibatch.mask),
            "token": token_weights(minibatch.mask),
            "positive": positive_weights(minibatch.mask, minibatch.right),
        }

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> Part:
        """See `Objective.loss`."""
        assert micro.old_logp is not None
        assert micro.advantages is not None
        kl, w = self.algorithm.kl, weights["surrogate"]
        # without a pass before the update the entropy is this pass's
        logp, entropy = self.policy.logp(micro.sequences, micro.width, with_entropy=micro.entropy is None)
        logp, old_logp = masked(logp, micro.mask), masked(micro.old_logp, micro.mask)
        surrogate = self._surrogate(logp, old_logp, masked(micro.sampled_logp, micro.mask), micro.advantages)
        if micro.sampler_weights is not None:
            surrogate = surrogate * micro.sampler_weights
        loss = policy_loss = weighted_sum(surrogate, w)
        positive = weighted_sum(-logp, weights["positive"])
        if self.algorithm.positive_lm > 0:
            loss = loss + self.algorithm.positive_lm * positive
        figures = {"loss/policy": policy_loss, "loss/positive_lm": positive}
        # of the sampler's numbers only those that the loss is made of: others correct by weights, which are bounded
        around_sampler = isinstance(self.algorithm.clip, RatioMask | ProbabilityBound)
        sampled = [micro.sampled_logp] if around_sampler else []
        loss = _nan_unless_finite(loss, micro.mask, logp.detach(), micro.old_logp, micro.advantages, *sampled)
        if kl.coef > 0:
            assert micro.ref_logp is not None
            divergence = kl_divergence(logp, masked(micro.ref_logp, micro.mask), estimator=kl.estimator)
            figures["loss/kl"] = weighted_sum(divergence, w)
            loss = loss + kl.coef * figures["loss/kl"]
        with torch.no_grad():
            high, low = self._stopped(logp, old_logp, micro)
            figures["clip_ratio/high_mean"] = weighted_sum(high.float(), w)
            figures["clip_ratio/low_mean"] = weighted_sum(low.float(), w)
            if entropy is not None:
                figures["entropy"] = weighted_sum(masked(entropy, micro.mask), weights["token"])
        return Part(loss, {name: value.detach() for name, value in figures.items()})

    def _surrogate(self, logp: Tensor, old_logp: Tensor, sampled_logp: Tensor, advantages: Tensor) -> Tensor:
        """The loss of each token under the method's trust region."""
        match self.algorithm.clip:
            case Clip(low=low, high=high):
                return clipped_surrogate(logp, old_logp, advantages, low=low, high=high)
            case DualClip(low=low, high=high, c=c):
                surrogate = clipped_surrogate(logp, old_logp, advantages, low=low, high=high)
                return dual_clip(surrogate, advantages, c=c)
            case RatioMask(low=low, high=high):
                return ratio_masked_surrogate(logp, sampled_logp, advantages, low=low, high=high)
            case ProbabilityBound(eps=eps):
                return probability_bounded_surrogate(logp, sampled_logp, advantages, eps=eps)

    def _stopped(self, logp: Tensor, old_logp: Tensor, micro: Batch) -> tuple[Tensor, Tensor]:
        """The tokens whose gradient the trust region stops: above its upper bound, below its lower one."""
        assert micro.advantages is not None
        up, down = micro.advantages > 0, micro.advantages < 0
        sampled_logp = masked(micro.sampled_logp, micro.mask)
        match self.algorithm.clip:
            case Clip(low=low, high=high):
                ratio = (logp - old_logp).exp()
                return up & (ratio > 1 + high), down & (ratio < 1 - low)
            case DualClip(low=low, high=high, c=c):
                ratio = (logp - old_logp).exp()
                return up & (ratio > 1 + high), down & ((ratio < 1 - low) | (ratio > c))
            case RatioMask(low=low, high=high):
                ratio = (logp - sampled_logp).exp()
                return ratio > high, ratio < low
            case ProbabilityBound(eps=eps):
                moved = logp.exp() - sampled_logp.exp()
                return up & (moved > eps), down & (moved < -eps)


def _nan_unless_finite(loss: Tensor, mask: Tensor, *inputs: Tensor) -> Tensor:
    """The loss, or NaN if one of its inputs is not finite at a learned token: clipping would hide a ratio of 0 or ∞."""
    finite = torch.stack([torch.where(mask, x, 0.0).isfinite().all() for x in inputs]).all()
    return torch.where(finite, loss, math.nan)


@dataclass(frozen=True)
class RewardModelObjective:
    """L = Σ w·l(V(s_end), R) over finished responses: it scores whole responses only."""

    critic: Critic

    @property
    def module(self) -> torch.nn.Module:
        return self.critic.model

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """Every response that was not cut off the same, on its last learned token."""
        mask = minibatch.mask & ~minibatch.truncated[:, None]
        last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
        return {"value": token_weights(last)}

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> Part:
        """See `Objective.loss`."""
        outputs = self.critic.final_outputs(micro.critic_sequences)
        per_response = head_loss(self.critic.head, outputs, micro.critic_outcomes)
        loss = weighted_sum(per_response, weights["value"].sum(-1))
        return Part(loss, {"value/loss": loss.detach()})


@dataclass(frozen=True)
class CriticObjective:
    """L = Σ w·l(V, y), y frozen before the update (VAPO §4.1); l is ½(V - y)² or the cross-entropy of the head."""

    critic: Critic
    credit: Gae

    @property
    def module(self) -> torch.nn.Module:
        return self.critic.model

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """One set of weights: by `critic_reduction` over the tokens of the loss, times the weight of the response.

        The latter have a mean of 1 over the rollout, so those of a minibatch need not sum to 1.
        """
        match self.credit.value_tokens:
            case AllTokens():
                tokens = minibatch.mask
            case Anchors(fractions=fractions):
                tokens = anchor_mask(minibatch.mask, fractions)
            case TurnStarts():
                tokens = turn_start_mask(minibatch.mask, minibatch.turn_starts)
        weights = REDUCTIONS[self.credit.critic_reduction](tokens)
        if minibatch.critic_weights is not None:
            weights = weights * minibatch.critic_weights[:, None]
        return {"value": weights}

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> Part:
        """See `Objective.loss`."""
        assert micro.returns is not None
        outputs = self.critic.outputs(micro.critic_sequences, micro.width)
        values = masked(head_values(self.critic.head, outputs.detach()), micro.mask)
        outputs = masked(outputs, micro.mask[..., None].expand(outputs.shape))
        # value pretraining has no old values to stay near: its targets are what was really earned, so it is not clipped
        old = None if micro.old_values is None else masked(micro.old_values, micro.mask)
        clip = None if old is None else self.credit.value_clip
        returns = masked(micro.returns, micro.mask)
        per_token = head_loss(self.critic.head, outputs, returns, old_values=old, clip=clip)
        loss = weighted_sum(per_token, weights["value"])
        return Part(loss, {"value/loss": loss.detach()}, values)
