"""Reductions from one number per token to a scalar, as tensors of weights.

Weights are made on the whole minibatch of an optimizer step, over all ranks, before it is cut into
micro-batches. Each micro-batch then takes its rows of them, and the micro-losses are *summed*:

    weights = token_weights(mask)                       # once, for the whole minibatch
    for rows in micro_batches:
        weighted_sum(clipped_surrogate(...), weights[rows]).backward()

The sum of these gradients is the gradient of the whole minibatch for every way of cutting it.

A trainer that sees one micro-batch or one rank's rows at a time gives `total`, the count over the whole minibatch; the
weights of the parts are then those that the whole would have, and sum to 1 over all parts together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vapo.algo._tensors import (
    numbered,
    require_bool,
    require_groups,
    require_mask,
    require_one_shape,
    require_rows,
    widened,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def token_weights(
    mask: Bool[Tensor, "*B T"], *, total: float | Int[Tensor, ""] | Float[Tensor, ""] | None = None
) -> Float[Tensor, "*B T"]:
    """Weights that are equal for all tokens (DAPO, VAPO), float32.

        w_it = 1 / Σ_j |o_j|          |o_j|: the trainable tokens of response j

    They sum to 1 over the mask and are 0 outside it; all are 0 if the mask is empty. `total` takes the place of the sum
    where these rows are a part of the minibatch: its trainable tokens over all micro-batches and ranks.

    Raises ValueError if the mask is not bool, or the total is less than the tokens of these rows.

    Source: DAPO, arXiv:2503.14476, eq. 8; VAPO, arXiv:2504.05118, eq. 7.
    """
    require_bool("token_weights", mask=mask)
    return mask / _whole("token_weights", mask.sum(), total)


def sequence_weights(
    mask: Bool[Tensor, "B T"], *, total: float | Int[Tensor, ""] | Float[Tensor, ""] | None = None
) -> Float[Tensor, "B T"]:
    """Weights with an equal sum for every response (GRPO, plain PPO), float32.

        w_it = 1 / (G·|o_i|)          G: the number of responses with trainable tokens

    They sum to 1 over the mask and are 0 outside it; all are 0 if the mask is empty. `total` takes the place of G where
    these rows are a part of the minibatch: its responses with trainable tokens, over all micro-batches and ranks.

    Raises ValueError if the mask is not bool, or the total is less than the responses of these rows.

    Source: VAPO, arXiv:2504.05118, eq. 6; GRPO, arXiv:2402.03300, eq. 3.
    """
    require_mask("sequence_weights", mask)
    lengths = mask.sum(-1, keepdim=True)
    return mask / lengths.clamp(min=1) / _whole("sequence_weights", (lengths > 0).sum(), total)


def positive_weights(
    mask: Bool[Tensor, "B T"],
    correct: Bool[Tensor, " B"],
    *,
    total: float | Int[Tensor, ""] | Float[Tensor, ""] | None = None,
) -> Float[Tensor, "B T"]:
    """Weights of the positive-example language-model loss: the tokens of correct responses, float32.

        w_it = 1 / Σ_{j correct} |o_j|  if response i is correct, else 0
        L_NLL = Σ_it w_it·(-logp_it)          L = L_PPO + μ·L_NLL

    They sum to 1; all are 0 if no response is correct. `correct` is the verifier's verdict before shaping: a
    right answer with a length penalty counts as right. `total` is that of `token_weights`, over the correct responses.

    Raises ValueError if mask or correct is not bool, correct is not one per response, or the total is too small.

    Source: VAPO, arXiv:2504.05118, eq. 9-10.
    """
    require_mask("positive_weights", mask)
    require_bool("positive_weights", correct=correct)
    require_rows("positive_weights", len(mask), correct=correct)
    return token_weights(mask & correct.unsqueeze(1), total=total)


def _whole(name: str, here: Tensor, total: float | Tensor | None) -> Tensor | float:
    """What weights are divided by: the count of these rows, 1 at least, or the given total."""
    if total is None:
        return here.clamp(min=1)
    if not total >= here:
        raise ValueError(
            f"{name} got total={float(total):g}, and these rows alone count {int(here)}: give the count over the whole "
            "minibatch, all micro-batches and ranks together."
        )
    return total if total > 0 else here.clamp(min=1)


@torch.no_grad()
def anchor_mask(mask: Bool[Tensor, "B T"], fractions: tuple[float, ...] | list[float]) -> Bool[Tensor, "B T"]:
    """True on a few separate tokens of each response: token floor(f·l) of its l trainable tokens, for each fraction f.

    Counted from 0 over the mask, so holes are skipped; f = 1 is the last token. Fractions that meet in one token give
    one anchor. A row without tokens has none.

    Raises ValueError unless the mask is bool and the fractions in (0, 1].

    Source: SP3O, arXiv:2609.18708 (0.3, 0.6, 0.9): regression on all of a response's correlated tokens flattens V.
    """
    require_mask("anchor_mask", mask)
    if not fractions or not all(0 < f <= 1 for f in fractions):
        raise ValueError(f"anchor_mask needs fractions in (0, 1], got {list(fractions)}. SP3O uses 0.3, 0.6 and 0.9.")
    position, lengths = mask.cumsum(1) - 1, mask.sum(1, keepdim=True)
    anchors = torch.zeros_like(mask)
    for fraction in fractions:
        # in float64 and with a touch of room: floor(0.3·10) is 3, and 0.3·10 must not come out as 2.9999
        at = (lengths.double() * fraction + 1e-9).floor().long().minimum(lengths - 1)
        anchors |= position == at
    return anchors & mask


@torch.no_grad()
def turn_start_mask(mask: Bool[Tensor, "B T"], starts: Bool[Tensor, "B T"] | None = None) -> Bool[Tensor, "B T"]:
    """True on the first token of each turn: tokens of the mask whose left neighbour is outside of it.

    Tokens of the mask where `starts` is True count, too: a turn that follows the one before without a token of the
    environment between them.

    Raises ValueError for shapes that differ, or a mask or starts that are not bool.

    Source: a convention of multi-turn recipes: the value of a turn is read at its first token.
    """
    require_mask("turn_start_mask", mask)
    before = torch.nn.functional.pad(mask[:, :-1], (1, 0))
    if starts is None:
        return mask & ~before
    require_bool("turn_start_mask", starts=starts)
    require_one_shape("turn_start_mask", mask=mask, starts=starts)
    return mask & (~before | starts)


@torch.no_grad()
def prompt_weights(outcomes: Float[Tensor, " N"], groups: Int[Tensor, " N"], *, floor: float) -> Float[Tensor, " N"]:
    """One weight per response for the critic's loss: prompts whose outcomes hardly differ count more.

        w_p = 1 / max(std of the prompt's outcomes, floor),  divided by the mean of w over prompts

    The standard deviation is the population's. EasyPPO takes floor = range / (2·√n), with n responses per prompt.

    Raises ValueError for shapes that differ, groups that are not integers, a floor that is not positive.

    Source: EasyPPO, arXiv:2609.36802, eq. 7.
    """
    require_groups("prompt_weights", None, outcomes=outcomes, groups=groups)
    if not floor > 0:
        raise ValueError(f"prompt_weights needs a positive floor, got {floor}: equal outcomes have a deviation of 0.")
    index, num_groups = numbered(groups)
    (outcomes,) = widened(outcomes)
    zeros = outcomes.new_zeros(num_groups)
    size = zeros.index_add(0, index, torch.ones_like(outcomes))
    mean = zeros.index_add(0, index, outcomes) / size
    variance = zeros.index_add(0, index, (outcomes - mean[index]).square()) / size
    weights = 1 / variance.sqrt().clamp(min=floor)
    return (weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny))[index]


def weighted_sum(per_token: Float[Tensor, "*B T"], weights: Float[Tensor, "*B T"]) -> Float[Tensor, ""]:
    """The weighted sum of `per_token`: a scalar in float32, ready for backward().

        L = Σ_it w_it·L_it

    Tokens of weight 0 are left out by selection: their value, even NaN, does not count, and this sum passes
    them gradient 0. A gradient can still become NaN in the arithmetic that computes `per_token`. The losses
    of `vapo.algo` prevent this; for other arithmetic, apply `masked` to its inputs first.

    Raises ValueError for shapes that differ.
    """
    require_one_shape("weighted_sum", per_token=per_token, weights=weights)
    per_token, weights = widened(per_token, weights)
    return (torch.where(weights != 0, per_token, 0.0) * weights).sum()


def masked(x: Float[Tensor, "*B T"], mask: Bool[Tensor, "*B T"]) -> Float[Tensor, "*B T"]:
    """`x` where the mask is True and 0 elsewhere, in float32. Apply it to inputs, *before* arithmetic.

    Selecting the result is not enough: the gradient of where(mask, f(x), 0) outside the mask is 0·f'(x),
    which is NaN if f'(x) is not finite. With this function, the values and gradients outside the mask are
    exactly 0.

    Raises ValueError for shapes that differ or a mask that is not bool.
    """
    require_one_shape("masked", x=x, mask=mask)
    require_bool("masked", mask=mask)
    (x,) = widened(x)
    return torch.where(mask, x, 0.0)
