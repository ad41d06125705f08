"""The outcome of each response, and which responses are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vapo.algo import soft_overlong_punishment
from vapo.algo.method import Algorithm, Gae, Reward
from vapo.types import Episode, Verdict


@dataclass(frozen=True)
class Prices:
    """Of B responses: `outcomes` (B,), what the verdict or its score is worth, plus length shaping; `critic_outcomes`
    (B,), what of it the critic foresees; `learned` (B,), True where a response counts in losses and baselines;
    `policy_learned` (B,), True where it counts in the policy's loss."""

    outcomes: Tensor
    critic_outcomes: Tensor
    learned: Tensor
    policy_learned: Tensor


def price(episodes: Sequence[Episode], algorithm: Algorithm, *, max_response_tokens: int) -> Prices:
    """The outcomes of responses by their verdicts and lengths, under the method.

    The overlong punishment measures everything after the prompt, text of the environment included: that is what fills
    the limit.
    """
    reward = algorithm.reward
    outcomes = torch.tensor([worth(e.verdict, reward) for e in episodes])
    critic_outcomes = outcomes.clone()
    if reward.overlong_cache > 0:
        lengths = torch.tensor([e.opened + len(e.token_ids) for e in episodes])
        cache = max(1, round(reward.overlong_cache * max_response_tokens))
        outcomes = outcomes + soft_overlong_punishment(lengths, max_response_tokens, cache)
        if not isinstance(algorithm.credit, Gae) or algorithm.credit.overlong_in_target:
            critic_outcomes = outcomes.clone()
    learned = torch.tensor([learned_from(e, algorithm) for e in episodes])
    policy_learned = torch.tensor([policy_learns_from(e, algorithm) for e in episodes])
    return Prices(outcomes, critic_outcomes, learned, policy_learned)


def worth(verdict: Verdict, reward: Reward) -> float:
    """The outcome of a response before any shaping; of an invalid one `reward.wrong`, which no loss reads."""
    if reward.by == "score" and verdict.valid and verdict.score is not None:
        return reward.wrong + verdict.score * (reward.right - reward.wrong)
    return reward.right if verdict.right else reward.wrong


def learned_from(episode: Episode, algorithm: Algorithm) -> bool:
    """Whether the response counts in losses and baselines: its verdict is valid, and it was not cut off under a method
    that drops such responses."""
    return episode.verdict.valid and not (episode.truncated and algorithm.truncated == "drop")


def policy_learns_from(episode: Episode, algorithm: Algorithm) -> bool:
    """Whether the response counts in the policy's loss: `learned_from`, and not cut off under a method that leaves such
    responses to the critic."""
    return learned_from(episode, algorithm) and not (episode.truncated and algorithm.truncated == "drop-from-policy")
