"""Credit assignment: advantages for the policy, returns for the critic."""

from __future__ import annotations

from dataclasses import replace

import torch

from vapo.algo import gae, group_advantages, lambdas, masked, terminal_rewards, whiten
from vapo.algo.method import Algorithm, Gae, GroupBaseline
from vapo.trainer.batch import Batch


def assign_credit(batch: Batch, algorithm: Algorithm) -> Batch:
    """The batch with `advantages`, and with `returns` and `lam` where a critic gives the credit.

    Needs `old_values` (and `final_values` where cut-off responses bootstrap) for `Gae`.
    """
    match algorithm.credit:
        case GroupBaseline(std=std):
            # a response without a trainable token does not count in the baseline either (docs/pitfalls.md, 9)
            per_response = group_advantages(batch.outcomes, batch.groups, std=std, valid=batch.mask.any(-1))
            return replace(batch, advantages=masked(per_response[:, None].expand(batch.mask.shape), batch.mask))
        case Gae() as credit:
            assert batch.old_values is not None
            values = masked(batch.old_values, batch.mask)
            outcomes, bootstrap = batch.outcomes, None
            if algorithm.truncated == "bootstrap":
                assert batch.final_values is not None
                # the value of going on stands in place of the failure, shaping included; a right answer is over
                unfinished = batch.truncated & ~batch.right
                outcomes = torch.where(unfinished, 0.0, outcomes)
                bootstrap = torch.where(unfinished, credit.gamma * batch.final_values, 0.0)
            rewards = terminal_rewards(outcomes, batch.mask, bootstrap)
            lengths = batch.mask.sum(-1)
            # Decoupled GAE: the same values, twice. Length-adaptive: one λ per response.
            policy_lam = lambdas(credit.policy_lambda, lengths)
            critic_lam = lambdas(credit.critic_lambda, lengths)
            advantages = gae(rewards, values, batch.mask, lam=policy_lam, gamma=credit.gamma)
            returns = gae(rewards, values, batch.mask, lam=critic_lam, gamma=credit.gamma) + values
            if credit.whiten:
                advantages = whiten(advantages, batch.mask)
            return replace(batch, advantages=advantages, returns=masked(returns, batch.mask), lam=policy_lam)
