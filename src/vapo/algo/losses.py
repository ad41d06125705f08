"""Losses, one number per token. `vapo.algo.reduction` averages them.

The losses take no mask. A token whose loss is not finite keeps that number and gets gradient 0.
`weighted_sum` leaves tokens of weight 0 out; a non-finite loss on any other token makes the sum non-finite,
and the trainer skips the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vapo.algo._tensors import require_one_shape, widened

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def clipped_surrogate(
    logp: Float[Tensor, "*B T"],
    old_logp: Float[Tensor, "*B T"],
    advantages: Float[Tensor, "*B T"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "*B T"]:
    """PPO's loss of each token, to be minimised.

        L_t = -min(ρ_t·A_t, clip(ρ_t, 1-low, 1+high)·A_t)          ρ_t = exp(logp_t - old_logp_t)

    Log-probabilities in nats. `high` acts only on A > 0, `low` only on A < 0; beyond the bound the gradient
    is 0. Clip-Higher is high > low: a token of old probability 0.01 may rise to 0.0128 with high = 0.28,
    instead of 0.012. Only `logp` gets a gradient. For the dual clip see `dual_clip`. A ratio that overflows
    is clipped where A ≥ 0, and gives an infinite loss without gradient where A < 0.

    Raises ValueError for shapes that differ, low outside [0, 1], a negative high.

    Source: arXiv:1707.06347, eq. 7; Clip-Higher: DAPO, arXiv:2503.14476, eq. 8 and VAPO, arXiv:2504.05118,
    eq. 8.
    """
    require_one_shape("clipped_surrogate", logp=logp, old_logp=old_logp, advantages=advantages)
    if not (0 <= low <= 1 and high >= 0):
        raise ValueError(
            f"clipped_surrogate needs low in [0, 1] and high >= 0, got low={low}, high={high}: they "
            "bound the ratio to [1 - low, 1 + high]. PPO uses 0.2 and 0.2, VAPO 0.2 and 0.28."
        )
    logp, old_logp, advantages = widened(logp, old_logp.detach(), advantages.detach())
    log_ratio = logp - old_logp
    # where A ≥ 0, all ratios beyond 1 + high are equivalent; e^80 is beyond and finite
    log_ratio = torch.where(advantages < 0, log_ratio, log_ratio.clamp(max=80.0))

    def surrogate(log_ratio: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)

    return _no_gradient_where_not_finite(surrogate, log_ratio, advantages)


def dual_clip(loss: Float[Tensor, "*B T"], advantages: Float[Tensor, "*B T"], *, c: float) -> Float[Tensor, "*B T"]:
    """The loss of `clipped_surrogate`, bounded where A < 0: there it is at most c·|A_t|.

        L'_t = min(L_t, -c·A_t) if A_t < 0, else L_t

    Without it, loss and gradient of a token with A < 0 grow without bound with its ratio. Beyond the bound
    the gradient is 0. Not part of VAPO; public recipes use c = 3 or 10.

    Raises ValueError for shapes that differ, or c of 1 or less.

    Source: arXiv:1912.09729.
    """
    require_one_shape("dual_clip", loss=loss, advantages=advantages)
    if not c > 1:
        raise ValueError(f"dual_clip needs c > 1, got {c}: c = 1 would clip tokens with an unchanged probability.")
    loss, advantages = widened(loss, advantages.detach())
    return torch.where(advantages < 0, torch.minimum(loss, -c * advantages), loss)


def value_loss(
    values: Float[Tensor, "*B T"],
    returns: Float[Tensor, "*B T"],
    *,
    old_values: Float[Tensor, "*B T"] | None = None,
    clip: float | None = None,
) -> Float[Tensor, "*B T"]:
    """The critic's loss of each token: half the squared error.

        L_t = ½·(V_t - y_t)²
        L_t = ½·max((V_t - y_t)², (V'_t - y_t)²)    with `clip`,
        V'_t = V_old + clip(V_t - V_old, -clip, clip)

    Returns y in units of reward. Only `values` gets a gradient. Value clipping is off unless `clip` is
    given: VAPO, VC-PPO and DAPO have none, EasyPPO and JustRL-II clip at 0.2. Without it `old_values` is not used.

    Raises ValueError for shapes that differ, a clip that is not positive, or a clip without old_values.

    Source: arXiv:1707.06347, eq. 9; VC-PPO, arXiv:2503.01491, for returns of λ = 1.
    """
    require_one_shape("value_loss", values=values, returns=returns)
    if clip is None:
        values, returns = widened(values, returns.detach())
        return _no_gradient_where_not_finite(lambda v, y: 0.5 * (v - y).square(), values, returns)

    if old_values is None:
        raise ValueError(
            f"value_loss needs old_values to clip at {clip}. Pass the values from scoring the rollout, or clip=None."
        )
    if not clip > 0:
        raise ValueError(f"value_loss needs a positive clip, got {clip}. Pass None to switch clipping off.")
    require_one_shape("value_loss", values=values, old_values=old_values)
    values, returns, old_values = widened(values, returns.detach(), old_values.detach())

    def clipped(v: Tensor, y: Tensor, old: Tensor) -> Tensor:
        near = old + (v - old).clamp(-clip, clip)
        return 0.5 * torch.maximum((v - y).square(), (near - y).square())

    return _no_gradient_where_not_finite(clipped, values, returns, old_values)


def kl_divergence(
    logp: Float[Tensor, "*B T"],
    ref_logp: Float[Tensor, "*B T"],
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
) -> Float[Tensor, "*B T"]:
    """An estimate of KL(π_θ || π_ref) at each token sampled from π_θ, in nats.

        d_t = logp_t - ref_logp_t          k1 = d          k2 = d²/2          k3 = exp(-d) - 1 + d

    The values of k1 and k3 are unbiased; k2 and k3 are never negative. As a *loss*, only k2 has the gradient
    of the KL divergence; GRPO uses k3. Use it in the loss or in the reward, not in both. Only `logp` gets a
    gradient.

    Raises ValueError for shapes that differ, or another estimator.

    Source: GRPO, arXiv:2402.03300, eq. 4 (k3); the names are J. Schulman's.
    """
    require_one_shape("kl_divergence", logp=logp, ref_logp=ref_logp)
    if estimator not in _KL:
        raise ValueError(f"kl_divergence has the estimators {', '.join(_KL)}, got {estimator!r}.")
    logp, ref_logp = widened(logp, ref_logp.detach())
    return _no_gradient_where_not_finite(_KL[estimator], logp - ref_logp)


_KL: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1(-d) + d,
}


def _no_gradient_where_not_finite(loss: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`loss(*inputs)`, elementwise; NaN and inf become constants without gradient.

    Selecting only the result is not enough: the gradient of where(ok, f(x), 0) is 0·f'(x), and 0·inf = nan.
    So the inputs are selected as well.
    """
    shown = loss(*(x.detach() for x in inputs))
    finite = shown.isfinite()
    return torch.where(finite, loss(*(torch.where(finite, x, 0.0) for x in inputs)), shown)
