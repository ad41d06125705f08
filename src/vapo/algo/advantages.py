"""Advantages: how much better than expected each token or response was.

`gae` and the rules for its λ need a critic; `group_advantages` does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, assert_never

import torch
import torch.nn.functional as F

from vapo.algo._tensors import (
    numbered,
    require_bool,
    require_groups,
    require_mask,
    require_one_shape,
    require_rows,
    widened,
)
from vapo.algo.diagnostics import masked_deviations
from vapo.algo.method import BetweenTurns, Fixed, Lambda, LengthAdaptive, Relative, Share
from vapo.algo.reduction import masked, turn_start_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num
    from torch import Tensor

BLOCK = 64
"""Tokens that one product sums up in `gae`."""

# --------------------------------------------------------------------------- with a critic


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    lam: float | Float[Tensor, " B"] | Float[Tensor, "B T"],
    gamma: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Generalised advantages of the response tokens, not normalised, without gradient.

        δ_t = r_t + γ·V_{t+1} - V_t          A_t = δ_t + γλ_t·A_{t+1}

    `values[:, t]` is V of the state *before* token t: the critic's output at the token before it. A
    response is a finished episode: V and A beyond its last token are 0, also when it was cut off at the
    length limit (to bootstrap there, see `terminal_rewards`). Tokens outside `mask` (prompt, padding, tool
    output) get A = 0. The recursion skips them and ignores their values and rewards, NaN included. A row
    without any token gives zeros.

    For Decoupled GAE call it twice: with the policy's λ for A; with the critic's λ for the returns, which
    are A + V. For Length-Adaptive GAE pass one λ per response; one per token for `turn_lambda`.

    Computed in float32, or in float64 if rewards or values are.

    Raises ValueError for shapes that differ, a mask that is not bool, λ or γ outside [0, 1] (a λ tensor is
    checked only on the CPU, because the check would synchronise a GPU).

    Source: arXiv:1506.02438, eq. 16; decoupling: VC-PPO, arXiv:2503.01491.
    """
    require_one_shape("gae", rewards=rewards, values=values, mask=mask)
    require_mask("gae", mask)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gae needs gamma in [0, 1], got {gamma}. The papers use 1.")
    rewards, values = widened(torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0))
    decay = gamma * _checked_lambda(lam, values)  # γλ, (B, 1) or (B, T)

    # On a CPU it is seen at once whether every row begins with its tokens and has no holes; a GPU would have to wait.
    if mask.device.type == "cpu" and bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return _decayed_sums(_td_errors(rewards, values, gamma), decay)
    # Move each row's tokens to the left, so that t + 1 is the next token of the mask. All other tokens go to an
    # extra last column of zeros, which holds V and A after the end.
    rows, width = mask.shape
    column = torch.where(mask, mask.cumsum(1) - 1, width)
    rewards = rewards.new_zeros(rows, width + 1).scatter(1, column, rewards)
    values = values.new_zeros(rows, width + 1).scatter(1, column, values)
    if decay.shape[1] > 1:
        decay = decay.new_zeros(rows, width + 1).scatter(1, column, decay)
    return _decayed_sums(_td_errors(rewards, values, gamma), decay).gather(1, column)


def _td_errors(rewards: Float[Tensor, "B T"], values: Float[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """δ_t = r_t + γ·V_{t+1} - V_t, where V is 0 after the last column."""
    deltas = rewards - values
    deltas[:, :-1].add_(values[:, 1:], alpha=gamma)
    return deltas


def _decayed_sums(deltas: Float[Tensor, "B T"], decay: Float[Tensor, "B _"]) -> Float[Tensor, "B T"]:
    """A_t = δ_t + decay_t·A_{t+1} for every t, where A is 0 after the last column. As a loop over the tokens:

        A[:, t] = deltas[:, t] + decay[:, t] * A[:, t + 1]          for t = T-1, …, 0

    On a CPU, and with one decay for a row, the tokens are cut into blocks of K. A product with a triangle of powers
    gives the sums within each block, a_i = Σ_{j ≥ i} decay^(j-i)·δ_j. What comes from behind is one number for each
    block, the A of the next one's first token, which token i counts decay^(K-i) times. So the tensor is read three
    times, whatever T is.
    """
    rows, width = deltas.shape
    exact = deltas.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    if decay.shape[1] > 1 or width <= BLOCK or deltas.device.type != "cpu" or not exact:
        return _doubled_sums(deltas, decay)
    blocks = F.pad(deltas, (0, -width % BLOCK)).view(rows, -1, BLOCK)
    powers = decay ** torch.arange(BLOCK + 1)  # decay^0 … decay^K, (B, K + 1)
    steps = torch.arange(BLOCK)[:, None] - torch.arange(BLOCK)  # from token i, in a column, to a later one j, in a row
    triangle = torch.where(steps >= 0, powers[:, steps.clamp(min=0)], 0.0)  # (B, K, K)
    sums = torch.bmm(blocks, triangle)
    firsts = _doubled_sums(sums[:, :, 0], powers[:, -1:])
    behind = F.pad(firsts[:, 1:], (0, 1))
    sums.addcmul_(behind[:, :, None], powers[:, 1:].flip(1)[:, None])
    return sums.view(rows, -1)[:, :width]


def _doubled_sums(deltas: Float[Tensor, "B T"], decay: Float[Tensor, "B _"]) -> Float[Tensor, "B T"]:
    """`_decayed_sums` by log2(T) passes over the whole tensor. After a pass, A_t holds the first n terms of its sum,

        A_t = δ_t + decay·δ_{t+1} + … + decay^(n-1)·δ_{t+n-1}

    and the next n terms are decay^n·A_{t+n}. So each pass doubles n, until n reaches T. With one decay per token,
    decay^n is the product of n neighbours.
    """
    sums, num_terms, power = deltas, 1, decay  # power = decay^num_terms
    while num_terms < deltas.shape[1]:
        sums = sums + power * F.pad(sums[:, num_terms:], (0, num_terms))
        further = power if power.shape[1] == 1 else F.pad(power[:, num_terms:], (0, num_terms))
        num_terms, power = 2 * num_terms, power * further
    return sums


def _checked_lambda(lam: float | Tensor, like: Tensor) -> Tensor:
    """λ as a (B, 1) or (B, T) tensor, with its shape and, on the CPU, its range checked."""
    if isinstance(lam, torch.Tensor):
        if lam.ndim == 2:
            require_one_shape("gae", lam=lam, values=like)
        else:
            require_rows("gae", len(like), lam=lam)
        outside = lam.device.type == "cpu" and not bool(((lam >= 0) & (lam <= 1)).all())
    else:
        outside = not 0 <= lam <= 1
    if outside:
        raise ValueError(
            f"gae needs lam in [0, 1], got {lam}. length_adaptive_lambda clamps 1 - 1/(α·l) for short "
            "responses; use it instead of the formula."
        )
    found = torch.as_tensor(lam, dtype=like.dtype, device=like.device)
    return found if found.ndim == 2 else found.expand(len(like)).unsqueeze(1)


def length_adaptive_lambda(lengths: Num[Tensor, " B"], alpha: float = 0.05) -> Float[Tensor, " B"]:
    """One λ per response, so that the weights of its TD errors sum to about α·l.

        Σ_t λ^t ≈ 1/(1 - λ) = α·l     =>     λ(l) = 1 - 1/(α·l), clamped to [0, 1]

    `lengths` counts trainable response tokens, the stop token included. The formula is negative for l < 1/α,
    a case that the paper leaves open. This function clamps: with α = 0.05, responses of up to 20 tokens
    (empty ones, too) get λ = 0, one-step TD; 21 tokens get 0.048, 400 tokens 0.95.

    At every length, the last TD error has weight λ^(l-1) ≈ exp(-1/α) on the first token: 2e-9 with α = 0.05,
    0.08 with 0.4, 0.51 with 1.5. With a small α, early tokens learn from the critic and hardly from the
    outcome. λ depends on the sampled length, so if lengths differ the policy gradient is biased even with a
    perfect critic; with one λ for all responses it is not.

    Raises ValueError unless alpha is positive and finite.

    Source: VAPO, arXiv:2504.05118, eq. 4-5.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(
            f"length_adaptive_lambda needs a positive alpha, got {alpha}. The paper uses 0.05; "
            "responses of up to 1/alpha tokens get lambda 0."
        )
    (lengths,) = widened(lengths)
    return (1 - 1 / (alpha * lengths)).clamp(0.0, 1.0)


def relative_lambda(lengths: Num[Tensor, " B"], q: float) -> Float[Tensor, " B"]:
    """One λ per response, so that the last TD error has weight exactly q on the first token.

        λ(l) = q^(1/(l-1))     =>     λ^(l-1) = q

    Responses of at most one token get λ = 1. `length_adaptive_lambda` approximates this with
    q ≈ exp(-1/α); here q is exact at every length.

    Raises ValueError unless q is in (0, 1].

    Source: AReaL, areal/trainer/ppo/lambda_fn.py.
    """
    if not 0 < q <= 1:
        raise ValueError(
            f"relative_lambda needs q in (0, 1], got {q}: it is the weight of the outcome on the first token."
        )
    (lengths,) = widened(lengths)
    return torch.where(lengths > 1, q ** (1 / (lengths - 1).clamp(min=1)), 1.0)


def share_lambda(lengths: Num[Tensor, " B"], k: float) -> Float[Tensor, " B"]:
    """One λ per response, so that the share k of the outcome reaches the first token.

        λ(l) = k^(1/l)     =>     λ^l = k

    `lengths` counts trainable response tokens; an empty response gets k. In float32, or wider if the lengths
    are: near 1, bfloat16 would round λ to 1. α = 1.5 is about k = 0.51 at every length, 0.4 is 0.08, 0.05 is 2e-9.

    Raises ValueError unless k is in (0, 1].

    Source: JustRL-II; `relative_lambda` is its sibling k^(1/(l-1)).
    """
    if not 0 < k <= 1:
        raise ValueError(f"share_lambda needs k in (0, 1], got {k}: it is the outcome's share at the first token.")
    (lengths,) = widened(lengths)
    return k ** (1 / lengths.clamp(min=1))


@torch.no_grad()
def turn_lambda(
    mask: Bool[Tensor, "B T"], lam: Float[Tensor, " B"], starts: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B T"]:
    """One λ per token for `gae`: the response's `lam` at the last token of each turn, 1 at the others.

    A turn is a run of tokens of the mask, ended by a gap or by the first token of another turn: `starts` is True on
    these, and is needed only where no token of the environment stands between two turns. So advantages within a turn
    are equal but for the values, and what a later turn earns reaches an earlier one discounted by λ for every turn
    between them.

    Raises ValueError for shapes that differ, or a mask or starts that are not bool.

    Source: ours; GAE (arXiv:1506.02438, eq. 16) with turns as its steps.
    """
    require_mask("turn_lambda", mask)
    require_rows("turn_lambda", len(mask), lam=lam)
    goes_on = mask & ~turn_start_mask(mask, starts)
    after = F.pad(goes_on[:, 1:], (0, 1))
    return torch.where(mask & ~after, lam[:, None], 1.0)


def held_values(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B T"]:
    """The value of each turn's first token at all tokens of the turn, in units of reward; see `turn_lambda` for turns.

    (B, T), 0 outside the mask. For a critic that learns the values of first tokens only: what it says of the others was
    never trained.

    Raises ValueError for shapes that differ, or a mask or starts that are not bool.

    Source: ours; GAE (arXiv:1506.02438, eq. 16) with turns as its steps.
    """
    require_one_shape("held_values", values=values, mask=mask)
    places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    first = torch.where(turn_start_mask(mask, starts), places, 0).cummax(-1).values
    return masked(values.gather(-1, first), mask)


def lambdas(rule: Lambda, lengths: Num[Tensor, " B"]) -> Float[Tensor, " B"]:
    """One λ per response, by the rule of a preset. `BetweenTurns` gives what `turn_lambda` takes."""
    match rule:
        case Fixed(value=value) | BetweenTurns(value=value):
            (like,) = widened(lengths)
            return torch.full_like(like, value)
        case LengthAdaptive(alpha=alpha):
            return length_adaptive_lambda(lengths, alpha)
        case Relative(q=q):
            return relative_lambda(lengths, q)
        case Share(k=k):
            return share_lambda(lengths, k)
        case _:
            assert_never(rule)


@torch.no_grad()
def whiten(advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Advantages with mean 0 and population variance 1 over `mask`, and 0 outside it, without gradient.

        A'_t = (A_t - mean) / std          mean and std over the tokens of the mask, both

    Apply it to the whole step, before it is cut into minibatches, and to the policy's advantages only, not
    to the critic's targets. Equal advantages (or a single one) become 0. Values outside the mask, NaN
    included, have no effect.

    Raises ValueError for shapes that differ or a mask that is not bool or has no rows.

    Source: common in implementations; not in VAPO, and BPCO, arXiv:2608.23566, advises against it.
    """
    require_one_shape("whiten", advantages=advantages, mask=mask)
    require_mask("whiten", mask)
    (advantages,) = widened(advantages)
    deviations, variance = masked_deviations(advantages, mask)
    return deviations / torch.where(variance == 0, 1.0, variance).sqrt()


# --------------------------------------------------------------------------- without a critic


@torch.no_grad()
def group_advantages(
    rewards: Float[Tensor, " N"],
    groups: Int[Tensor, " N"],
    *,
    std: Literal["population", "sample"] | None = "population",
    valid: Bool[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """One advantage per response: its reward relative to those of all responses to the same prompt.

        A_i = (R_i - mean(R_group)) / std(R_group)

    `groups` holds an integer per response that identifies its prompt, in any order. `std`: "population"
    divides the squares by the group's size G, as in eq. 9; "sample" by G - 1, as in verl and TRL; None does
    not divide (Dr. GRPO). No ε is added: a group with equal rewards, or with one response, has advantage
    exactly 0.

    Responses that are not `valid` (invalid verdict, or no trainable token) are left out of mean and std,
    and get 0.

    Raises ValueError for shapes that differ, another `std`, groups that are not integers.

    Source: GRPO, arXiv:2402.03300 §4.1; DAPO, arXiv:2503.14476, eq. 9; no std: Dr. GRPO, arXiv:2503.20783.
    """
    if std not in ("population", "sample", None):
        raise ValueError(f'group_advantages knows std="population", "sample" and None, got {std!r}.')
    valid = require_groups("group_advantages", valid, rewards=rewards, groups=groups)
    index, num_groups = numbered(groups)
    (rewards,) = widened(rewards)

    # Subtract the group's smallest reward first, so that equal rewards differ by exactly 0.
    smallest = rewards.new_full((num_groups,), math.inf)
    smallest = smallest.scatter_reduce(0, index, torch.where(valid, rewards, math.inf), "amin")
    excess = torch.where(valid, rewards - smallest[index], 0.0)

    zeros = rewards.new_zeros(num_groups)
    size = zeros.index_add(0, index, valid.to(rewards.dtype)).clamp(min=1)
    mean = zeros.index_add(0, index, excess) / size
    deviation = torch.where(valid, excess - mean[index], 0.0)
    if std is None:
        return deviation
    squares = zeros.index_add(0, index, deviation.square())
    variance = squares / (size if std == "population" else (size - 1).clamp(min=1))
    return deviation / torch.where(variance == 0, 1.0, variance).sqrt()[index]


@torch.no_grad()
def informative_groups(
    right: Bool[Tensor, " N"], groups: Int[Tensor, " N"], valid: Bool[Tensor, " N"] | None = None
) -> Bool[Tensor, " N"]:
    """Per response, whether its group has both right and wrong answers; dynamic sampling keeps these groups.

        0 < #{right in the group} < #{valid in the group}

    Only valid responses count. An invalid one gets True if the others of its group are mixed, and the caller
    must leave it out of the loss. Groups of one response are never informative.

    Raises ValueError for shapes that differ, verdicts that are not bool, groups that are not integers.

    Source: DAPO, arXiv:2503.14476, eq. 8 (the constraint) and §3.2.
    """
    valid = require_groups("informative_groups", valid, right=right, groups=groups)
    require_bool("informative_groups", right=right)
    index, num_groups = numbered(groups)
    zeros = torch.zeros(num_groups, dtype=torch.long, device=groups.device)
    num_right = zeros.index_add(0, index, (right & valid).long())
    num_valid = zeros.index_add(0, index, valid.long())
    return ((num_right > 0) & (num_right < num_valid))[index]
