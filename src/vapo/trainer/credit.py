"""Credit assignment: advantages for the policy, returns for the critic, and the weights of both losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from vapo.algo import (
    explained_variance,
    gae,
    group_advantages,
    held_values,
    lambdas,
    leave_one_out,
    masked,
    mixture_share,
    mixture_sums,
    prompt_weights,
    sampler_weights,
    terminal_rewards,
    turn_lambda,
    whiten,
)
from vapo.algo.method import Algorithm, BetweenTurns, Gae, GroupBaseline, LinearHead, TurnStarts
from vapo.trainer.batch import Batch
from vapo.trainer.run import Run

MIXTURE_MEMORY = 0.9
"""How much of the mixture's sums a step keeps: about the last ten steps count."""


def assign_credit(batch: Batch, algorithm: Algorithm, mixture: tuple[float, float] = (0.0, 0.0)) -> Batch:
    """The batch with `advantages`, and with `values`, `returns` and `lam` where a critic gives the credit.

    Needs `old_values` (and `final_values` where cut-off responses bootstrap) for `Gae`. `mixture` holds the sums of
    earlier steps that a fitted baseline takes its share from, see `new_mixture`.
    """
    batch = with_sampler_weights(batch, algorithm)
    match algorithm.credit:
        case GroupBaseline(std=std, leave_one_out=others):
            # a response without a trainable token does not count in the baseline either (docs/pitfalls.md, 9)
            valid = batch.mask.any(-1)
            if others:
                per_response = batch.outcomes - leave_one_out(batch.outcomes, batch.groups, valid=valid)
                per_response = torch.where(alone(batch), 0.0, per_response)
            else:
                per_response = group_advantages(batch.outcomes, batch.groups, std=std, valid=valid)
            return replace(batch, advantages=masked(per_response[:, None].expand(batch.mask.shape), batch.mask))
        case Gae() as credit:
            batch = with_held_values(batch, credit)
            batch = with_critic_share(with_group_means(batch), credit, mixture)
            batch = with_critic_target(batch, algorithm)
            assert batch.old_values is not None
            answers = masked(batch.old_values, batch.mask)
            values = masked(consumed_values(answers, batch, credit), batch.mask)
            outcomes, targets = batch.outcomes, _targets(batch)
            bootstrap = policy_bootstrap = None
            if algorithm.truncated == "bootstrap":
                assert batch.final_values is not None
                # the value of going on stands in place of the failure, shaping included; a right answer is over
                unfinished = batch.truncated & ~batch.right
                outcomes = torch.where(unfinished, 0.0, outcomes)
                targets = torch.where(unfinished, 0.0, targets)
                bootstrap = torch.where(unfinished, credit.gamma * batch.final_values, 0.0)
                # the policy's bootstrap is made of the critic's answer as its other values are
                final = consumed_values(batch.final_values[:, None], batch, credit)[:, 0]
                policy_bootstrap = torch.where(unfinished, credit.gamma * final, 0.0)
            lengths = batch.mask.sum(-1)
            # Decoupled GAE: twice, with one λ for the policy and another for the critic. Length-adaptive: one λ per
            # response.
            policy_lam = lambdas(credit.policy_lambda, lengths)
            critic_lam = lambdas(credit.critic_lambda, lengths)
            steps = [
                turn_lambda(batch.mask, lam, batch.turn_starts) if isinstance(rule, BetweenTurns) else lam
                for rule, lam in ((credit.policy_lambda, policy_lam), (credit.critic_lambda, critic_lam))
            ]
            policy_rewards = terminal_rewards(outcomes, batch.mask, policy_bootstrap)
            advantages = gae(policy_rewards, values, batch.mask, lam=steps[0], gamma=credit.gamma)
            critic_rewards = terminal_rewards(targets, batch.mask, bootstrap)
            returns = gae(critic_rewards, answers, batch.mask, lam=steps[1], gamma=credit.gamma) + answers
            if credit.whiten:
                advantages = whiten(advantages, batch.for_policy().mask)
            return replace(
                batch, values=values, advantages=advantages, returns=masked(returns, batch.mask), lam=policy_lam
            )


def with_critic_target(batch: Batch, algorithm: Algorithm) -> Batch:
    """The batch with what is taken off the critic's target, and with the weights of its loss, as the method wants.

    Both are numbers of the whole rollout: minibatches and processes take their rows of them.
    """
    credit = algorithm.credit
    assert isinstance(credit, Gae)
    if credit.baseline == "group":
        known = batch.critic_others_mean
        batch = replace(batch, critic_shift=others_mean(batch.critic_outcomes, batch) if known is None else known)
    if credit.prompt_weights:
        spread = algorithm.reward.right - algorithm.reward.wrong
        floor = spread / (2 * math.sqrt(algorithm.sampling.per_prompt))
        learned = batch.mask.any(-1)
        weights = torch.ones(len(batch))
        if bool(learned.any()):
            weights[learned] = prompt_weights(batch.critic_outcomes[learned], batch.groups[learned], floor=floor)
        batch = replace(batch, critic_weights=weights)
    return batch


def alone(batch: Batch) -> Tensor:
    """(B,): True for learned responses whose group has no other learned response."""
    learned = batch.mask.any(-1)
    size = torch.zeros(int(batch.groups.max()) + 1).index_add(0, batch.groups, learned.float())
    return learned & (size[batch.groups] == 1)


def others_mean(outcomes: Tensor, batch: Batch) -> Tensor:
    """The mean outcome of the other learned responses to the prompt, (B,); of the whole step where there are none."""
    learned = batch.mask.any(-1)
    of_group = leave_one_out(outcomes, batch.groups, valid=learned)
    of_step = leave_one_out(outcomes, torch.zeros_like(batch.groups), valid=learned)
    return torch.where(alone(batch), of_step, of_group)


def with_group_means(batch: Batch) -> Batch:
    """The batch with `others_mean` and `critic_others_mean`, made once a step for all that reads them."""
    if batch.others_mean is not None:
        return batch
    means = others_mean(batch.outcomes, batch)
    same = torch.equal(batch.outcomes, batch.critic_outcomes)
    of_critic = means if same else others_mean(batch.critic_outcomes, batch)
    return replace(batch, others_mean=means, critic_others_mean=of_critic)


def with_critic_share(batch: Batch, credit: Gae, mixture: tuple[float, float]) -> Batch:
    """The batch with the critic's share of the baseline where the method has one: ρ of a fitted one, 0 or 1 of a gated
    one."""
    if credit.baseline not in ("fitted", "gated"):
        return batch
    share = mixture_share(*mixture) if credit.baseline == "fitted" else float(gate_is_open(batch))
    return replace(batch, critic_share=torch.full((len(batch),), share, dtype=torch.float64))


def with_held_values(batch: Batch, credit: Gae) -> Batch:
    """The batch with the value of each turn's first token all over the turn, where the critic learns no others."""
    if not isinstance(credit.value_tokens, TurnStarts):
        return batch
    assert batch.old_values is not None
    held = held_values(batch.old_values, batch.mask, batch.turn_starts)
    final = batch.final_values
    if final is not None:  # a response that was cut off is still in its last turn
        places = torch.arange(batch.width).expand(batch.mask.shape)
        last = torch.where(batch.mask, places, 0).amax(-1, keepdim=True)
        final = held.gather(-1, last)[:, 0]
    return replace(batch, old_values=held, final_values=final)


def consumed_values(answers: Tensor, batch: Batch, credit: Gae) -> Tensor:
    """The V that advantages are measured from, (B, T): the critic's answers with the group's mean, as set."""
    assert batch.others_mean is not None
    match credit.baseline:
        case "none":
            return answers
        case "group":
            return answers + batch.others_mean[:, None]
        case "fitted":
            share = critic_share(batch)
            return (1 - share) * batch.others_mean[:, None] + share * answers
        case "gated":
            if critic_share(batch) > 0:
                return answers
            everyone = torch.zeros_like(batch.groups)
            others = leave_one_out(batch.outcomes, everyone, valid=batch.mask.any(-1))
            return others[:, None].expand(answers.shape)
        case _:
            assert_never(credit.baseline)


def gate_is_open(batch: Batch) -> bool:
    """Whether the critic explains any of the variance of this step's outcomes (EVPO)."""
    assert batch.old_values is not None
    targets = batch.critic_outcomes[:, None].expand(batch.mask.shape)
    return bool(explained_variance(batch.old_values, targets, batch.mask, exact=True) > 0)


def critic_share(batch: Batch) -> float:
    """The critic's share of the baseline, one number for the step."""
    assert batch.critic_share is not None
    return float(batch.critic_share[0])


def new_mixture(batch: Batch, mixture: tuple[float, float]) -> tuple[float, float]:
    """The mixture's sums with this step's added, for the next step: a share never depends on outcomes it is used on.

    A step whose sums are not finite, because a value is not, adds nothing: the sums would never become finite again.
    """
    assert batch.old_values is not None
    assert batch.others_mean is not None, "assign_credit comes first"
    product, square = mixture_sums(batch.outcomes, batch.others_mean, batch.old_values, batch.mask)
    if not (math.isfinite(product) and math.isfinite(square)):
        return mixture
    count = max(1, int(batch.mask.sum()))
    return MIXTURE_MEMORY * mixture[0] + product / count, MIXTURE_MEMORY * mixture[1] + square / count


def with_sampler_weights(batch: Batch, algorithm: Algorithm) -> Batch:
    """The batch with the weights that correct for the sampler, where the method has a correction."""
    if algorithm.sampler.kind == "none":
        return batch
    assert batch.old_logp is not None
    weights, removed = sampler_weights(algorithm.sampler, batch.old_logp, batch.sampled_logp, batch.mask)
    return replace(batch, sampler_weights=weights, removed=removed)


def start_head(run: Run, batch: Batch) -> None:
    """Let a new head start where the method says: at a number, or at the mean target of the first rollout that has any.

    A linear head starts at 0 by itself.
    """
    credit = run.algorithm.credit
    if run.critic is None or run.state.head_started or not isinstance(credit, Gae):
        return
    learned = batch.mask.any(-1)
    start = credit.head.start
    if start == "mean":
        if not bool(learned.any()):
            return
        start = float(_targets(with_critic_target(batch, run.algorithm))[learned].mean())
    run.state.head_started = True
    if not (isinstance(credit.head, LinearHead) and start == 0):
        run.critic.start_at(start)


def _targets(batch: Batch) -> Tensor:
    """What the critic foresees, (B,): its outcomes, less the mean of the group for a residual critic."""
    return batch.critic_outcomes if batch.critic_shift is None else batch.critic_outcomes - batch.critic_shift


def monte_carlo_returns(batch: Batch, gamma: float) -> Tensor:
    """What the critic's target comes to without any critic: (B, T), discounted by γ for each learned token to come."""
    after = (batch.mask.sum(-1, keepdim=True) - batch.mask.cumsum(-1)).clamp(min=0)
    return masked(_targets(batch)[:, None] * gamma**after, batch.mask)


def with_returns(batch: Batch, algorithm: Algorithm) -> Batch:
    """The batch with Monte-Carlo returns, R·γ^(tokens to come), whatever a critic says; less the mean of the group's
    other responses where the critic learns what that leaves."""
    assert isinstance(algorithm.credit, Gae)
    batch = with_critic_target(batch, algorithm)
    return replace(batch, returns=monte_carlo_returns(batch, algorithm.credit.gamma))
