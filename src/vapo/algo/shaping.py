"""Rewards per token from the outcome of a whole response, and the length penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vapo.algo._tensors import require_mask, require_rows, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Num
    from torch import Tensor


@torch.no_grad()
def terminal_rewards(
    outcomes: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    bootstrap: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T"]:
    """Rewards per token: each response's outcome on its last trainable token, 0 on all others.

    The reward is on the last *trainable* token, also if the mask ends early or has holes. A row without
    trainable tokens gets no reward.

    `bootstrap` is γ·V(s') of the state s' *after* the last token, for responses that were cut off, and 0 for
    finished ones. It is added to the same reward, which equals bootstrapping: `gae` then computes
    δ_T = r_T + γ·V(s') - V_T for every λ. The critic's target also contains V(s'), even at λ = 1.

    Raises ValueError if the mask is not bool, or outcomes or bootstrap are not one per response.

    Source: VAPO, arXiv:2504.05118 §2 (reward at the end only). T-PPO, arXiv:2506.15050, takes V of
    the last token for V(s').
    """
    require_mask("terminal_rewards", mask)
    require_rows("terminal_rewards", len(mask), outcomes=outcomes)
    (total,) = widened(outcomes)
    if bootstrap is not None:
        require_rows("terminal_rewards", len(mask), bootstrap=bootstrap)
        total = total + bootstrap
    still_to_come = mask.flip(1).cumsum(1).flip(1)  # trainable tokens from here to the end
    return torch.where(mask & (still_to_come == 1), total.unsqueeze(1), 0.0)


def soft_overlong_punishment(lengths: Num[Tensor, " B"], max_length: int, cache_length: int) -> Float[Tensor, " B"]:
    """The length penalty to add to the outcome of each response, from 0 down to -1.

        0                                         |y| <= L_max - L_cache
        ((L_max - L_cache) - |y|) / L_cache       in between, linear
        -1                                        |y| >= L_max

    All lengths in response tokens. DAPO uses L_max = 20,480 and L_cache = 4,096: the line starts at 16,384.

    Raises ValueError unless 0 < cache_length <= max_length.

    Source: DAPO, arXiv:2503.14476, eq. 13.
    """
    if not 0 < cache_length <= max_length:
        raise ValueError(
            "soft_overlong_punishment needs 0 < cache_length <= max_length, got "
            f"cache_length={cache_length}, max_length={max_length}. The cache is the last part of the "
            "limit; DAPO uses a fifth of it."
        )
    (lengths,) = widened(lengths)
    return ((max_length - cache_length - lengths) / cache_length).clamp(-1.0, 0.0)
