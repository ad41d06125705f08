"""In a tabular MDP small enough to enumerate: which estimators point the right way.

With V = V^π the mean policy gradient of GAE is the true one for every λ; with a wrong V only for λ = 1.
And what no paper says: a λ that depends on the response's length is biased even with the exact V,
because the length is part of what happened.
"""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from vapo.algo import clipped_surrogate, gae, length_adaptive_lambda, terminal_rewards, weighted_sum

STOP = 2  # actions 0 and 1 go on


@dataclass
class Enumerated:
    """Every response of at most three tokens: states and actions (B, T), outcomes (B,), and a policy."""

    states: Tensor
    actions: Tensor
    mask: Tensor
    outcomes: Tensor
    logits: Tensor  # (states, actions)

    @property
    def logp(self) -> Tensor:
        return self.logits.log_softmax(1)[self.states, self.actions]

    @property
    def probabilities(self) -> Tensor:
        return torch.where(self.mask, self.logp, 0.0).sum(1).exp()

    def exact_values(self) -> Tensor:
        """V^π(s): the mean outcome of the responses through s."""
        with torch.no_grad():
            through = (self.states[:, :, None] == torch.arange(len(self.logits))) & self.mask[:, :, None]
            weight = through.any(1) * self.probabilities[:, None]
            return (weight * self.outcomes[:, None]).sum(0) / weight.sum(0)

    def true_gradient(self) -> Tensor:
        return torch.autograd.grad((self.probabilities * self.outcomes).sum(), self.logits)[0]

    def estimated_gradient(self, values: Tensor, lam: float | Tensor) -> Tensor:
        """The expectation, over all responses, of the gradient of the clipped loss at ρ = 1."""
        rewards = terminal_rewards(self.outcomes, self.mask)
        advantages = gae(rewards, values[self.states], self.mask, lam=lam)
        logp = self.logp
        loss = clipped_surrogate(logp, logp.detach(), advantages, low=0.2, high=0.28)
        weights = torch.where(self.mask, self.probabilities.detach()[:, None], 0.0)
        return -torch.autograd.grad(weighted_sum(loss, weights), self.logits)[0]


def enumerated(*, can_stop: bool) -> Enumerated:
    rng = torch.Generator().manual_seed(3)
    names = {prefix: i for i, prefix in enumerate(p for n in range(3) for p in product((0, 1), repeat=n))}
    responses = [p for n in range(1, 4) for p in product((0, 1, STOP), repeat=n)]
    responses = [r for r in responses if STOP not in r[:-1] and (r[-1] == STOP or len(r) == 3)]
    if not can_stop:
        responses = [r for r in responses if STOP not in r]
    size = len(responses), 3
    states, actions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    mask = torch.zeros(size, dtype=torch.bool)
    for i, response in enumerate(responses):
        for t, action in enumerate(response):
            states[i, t], actions[i, t], mask[i, t] = names[response[:t]], action, True
    logits = torch.randn(len(names), 3 if can_stop else 2, generator=rng, dtype=torch.float64)
    outcomes = torch.randn(len(responses), generator=rng, dtype=torch.float64)
    return Enumerated(states, actions, mask, outcomes, logits.requires_grad_())


def test_the_enumeration_is_complete():
    mdp = enumerated(can_stop=True)
    assert len(mdp.outcomes) == 15  # stop; 2 x stop; 4 x any of 3
    assert mdp.probabilities.sum().item() == pytest.approx(1.0)
    assert sorted(mdp.mask.sum(1).unique().tolist()) == [1, 2, 3]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_with_exact_values_the_mean_policy_gradient_is_exact_for_every_lambda(lam):
    mdp = enumerated(can_stop=True)
    torch.testing.assert_close(mdp.estimated_gradient(mdp.exact_values(), lam), mdp.true_gradient())


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95])
def test_with_wrong_values_only_lambda_one_is_unbiased(lam):
    mdp = enumerated(can_stop=True)
    wrong = mdp.exact_values() + torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(mdp.estimated_gradient(wrong, 1.0), mdp.true_gradient())
    assert (mdp.estimated_gradient(wrong, lam) - mdp.true_gradient()).abs().max() > 1e-3


def test_a_length_dependent_lambda_is_biased_even_with_exact_values():
    mdp = enumerated(can_stop=True)
    lam = length_adaptive_lambda(mdp.mask.sum(1).double(), alpha=1.0)  # 0, 1/2, 2/3 for 1, 2, 3 tokens
    error = mdp.estimated_gradient(mdp.exact_values(), lam) - mdp.true_gradient()
    assert error.abs().max() > 1e-3


def test_with_equal_lengths_and_exact_values_the_length_adaptive_lambda_is_unbiased():
    mdp = enumerated(can_stop=False)
    lam = length_adaptive_lambda(mdp.mask.sum(1).double(), alpha=1.0)
    torch.testing.assert_close(mdp.estimated_gradient(mdp.exact_values(), lam), mdp.true_gradient())
