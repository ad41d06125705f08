"""The outcome of each response, and which responses are learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vapo.algo import soft_overlong_punishment
from vapo.algo.method import Algorithm
from vapo.types import Episode


@dataclass(frozen=True)
class Prices:
    """Of B responses: `outcomes` (B,), the verdict's reward plus length shaping; `learned` (B,), True where a response
    counts in losses and baselines."""

    outcomes: Tensor
    learned: Tensor


def price(episodes: Sequence[Episode], algorithm: Algorithm, *, max_response_tokens: int) -> Prices:
    """The outcomes of responses by their verdicts and lengths, under the method.

    The overlong punishment measures everything after the prompt, text of the environment included: that is what fills
    the limit.
    """
    reward = algorithm.reward
    right = torch.tensor([e.verdict.right for e in episodes])
    outcomes = torch.where(right, reward.right, reward.wrong)
    if reward.overlong_cache > 0:
        lengths = torch.tensor([len(e.token_ids) for e in episodes])
        cache = max(1, round(reward.overlong_cache * max_response_tokens))
        outcomes = outcomes + soft_overlong_punishment(lengths, max_response_tokens, cache)
    return Prices(outcomes, torch.tensor([learned_from(e, algorithm) for e in episodes]))


def learned_from(episode: Episode, algorithm: Algorithm) -> bool:
    """Whether the response counts in losses and baselines: its verdict is valid, and it was not cut off under a method
    that drops such responses."""
    return episode.verdict.valid and not (episode.truncated and algorithm.truncated == "drop")
