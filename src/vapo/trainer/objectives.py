"""The losses of the networks. Weights are fixed over the whole minibatch, then micro-losses are summed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vapo.algo import (
    clipped_surrogate,
    dual_clip,
    kl_divergence,
    masked,
    positive_weights,
    sequence_weights,
    token_weights,
    value_loss,
    weighted_sum,
)
from vapo.algo.method import Algorithm, DualClip, Gae
from vapo.models.networks import Critic, Policy
from vapo.trainer.batch import Batch

REDUCTIONS = {"token": token_weights, "sequence": sequence_weights}


class Objective(Protocol):
    """A loss that is a weighted sum over tokens, the weights known before the minibatch is cut."""

    @property
    def module(self) -> torch.nn.Module: ...

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """Named (B, T) weights, each summing to 1 over the minibatch (or to 0 if its set is empty)."""
        ...

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The rows' share of the minibatch's loss, and named shares of its figures (all of them add up)."""
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
        """`surrogate` by the method's reduction; `positive` over the tokens of verified right responses."""
        return {
            "surrogate": REDUCTIONS[self.algorithm.reduction](minibatch.mask),
            "positive": positive_weights(minibatch.mask, minibatch.right),
        }

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective.loss`."""
        assert micro.old_logp is not None
        assert micro.advantages is not None
        clip, kl, w = self.algorithm.clip, self.algorithm.kl, weights["surrogate"]
        logp, _ = self.policy.logp(micro.sequences, micro.width)
        logp, old_logp = masked(logp, micro.mask), masked(micro.old_logp, micro.mask)
        surrogate = clipped_surrogate(logp, old_logp, micro.advantages, low=clip.low, high=clip.high)
        if isinstance(clip, DualClip):
            surrogate = dual_clip(surrogate, micro.advantages, c=clip.c)
        loss = policy_loss = weighted_sum(surrogate, w)
        positive = weighted_sum(-logp, weights["positive"])
        if self.algorithm.positive_lm > 0:
            loss = loss + self.algorithm.positive_lm * positive
        figures = {"loss/policy": policy_loss, "loss/positive_lm": positive}
        loss = _nan_unless_finite(loss, micro.mask, logp.detach(), micro.old_logp, micro.advantages)
        if kl.coef > 0:
            assert micro.ref_logp is not None
            divergence = kl_divergence(logp, masked(micro.ref_logp, micro.mask), estimator=kl.estimator)
            figures["loss/kl"] = weighted_sum(divergence, w)
            loss = loss + kl.coef * figures["loss/kl"]
        with torch.no_grad():
            ratio = (logp - old_logp).exp()
            up, down = micro.advantages > 0, micro.advantages < 0
            figures["clip_ratio/high_mean"] = weighted_sum((up & (ratio > 1 + clip.high)).float(), w)
            figures["clip_ratio/low_mean"] = weighted_sum((down & (ratio < 1 - clip.low)).float(), w)
            figures["kl/update"] = weighted_sum(ratio - 1 - (logp - old_logp), w)
        return loss, {name: value.detach() for name, value in figures.items()}


def _nan_unless_finite(loss: Tensor, mask: Tensor, *inputs: Tensor) -> Tensor:
    """The loss, or NaN if one of its inputs is not finite at a learned token: clipping would hide a ratio of 0 or ∞."""
    finite = torch.stack([torch.where(mask, x, 0.0).isfinite().all() for x in inputs]).all()
    return torch.where(finite, loss, math.nan)


@dataclass(frozen=True)
class RewardModelObjective:
    """L = Σ w·½(V(s_end) - R)² over finished responses: it scores whole responses only."""

    critic: Critic

    @property
    def module(self) -> torch.nn.Module:
        return self.critic.model

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """Every response that was not cut off the same, on its last learned token."""
        mask = minibatch.mask & ~minibatch.truncated[:, None]
        last = mask & (mask.cumsum(-1) == mask.sum(-1, keepdim=True))
        return {"value": token_weights(last)}

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective.loss`."""
        per_response = value_loss(self.critic.final_values(micro.sequences), micro.outcomes)
        loss = weighted_sum(per_response, weights["value"].sum(-1))
        return loss, {"value/loss": loss.detach()}


@dataclass(frozen=True)
class CriticObjective:
    """L = Σ w·½(V - y)², y frozen before the update (VAPO §4.1)."""

    critic: Critic
    credit: Gae

    @property
    def module(self) -> torch.nn.Module:
        return self.critic.model

    def weights(self, minibatch: Batch) -> dict[str, Tensor]:
        """One set of weights, by `critic_reduction`."""
        return {"value": REDUCTIONS[self.credit.critic_reduction](minibatch.mask)}

    def loss(self, micro: Batch, weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective.loss`."""
        assert micro.returns is not None
        values = masked(self.critic.values(micro.sequences, micro.width), micro.mask)
        # value pretraining has no old values to stay near: its targets are the outcomes, so it is not clipped
        old = None if micro.old_values is None else masked(micro.old_values, micro.mask)
        clip = None if old is None else self.credit.value_clip
        per_token = value_loss(values, masked(micro.returns, micro.mask), old_values=old, clip=clip)
        loss = weighted_sum(per_token, weights["value"])
        return loss, {"value/loss": loss.detach()}
