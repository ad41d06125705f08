"""Against numbers worked by hand: losses and gradients of single tokens; garbage stays where it is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vapo.algo import (
    clipped_surrogate,
    dual_clip,
    kl_divergence,
    masked,
    token_weights,
    value_loss,
    weighted_sum,
)

NAN, INF = float("nan"), float("inf")


def surrogate_and_gradient(
    ratio: float, advantage: float, *, low: float, high: float, c: float | None = None
) -> tuple[float, float]:
    """The objective min(ρA, clip(ρ)A) and its derivative by ρ, of one token of old probability 1/e."""
    logp = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.full_like(logp, -1.0), torch.full_like(logp, advantage)
    loss = clipped_surrogate(logp, old, advantages, low=low, high=high)
    if c is not None:
        loss = dual_clip(loss, advantages, c=c)
    loss.sum().backward()
    assert logp.grad is not None
    return -loss.item(), -logp.grad.item() / ratio  # dρ/dlogp = ρ


# ratio: objective and slope for A = +1 with .2/.2, with .2/.28, and for A = -1; None is a zero gradient
TABLE = {
    0.5: ((0.5, 1), (0.5, 1), (-0.8, None)),
    0.7: ((0.7, 1), (0.7, 1), (-0.8, None)),
    0.9: ((0.9, 1), (0.9, 1), (-0.9, -1)),
    1.0: ((1.0, 1), (1.0, 1), (-1.0, -1)),
    1.2: ((1.2, 1), (1.2, 1), (-1.2, -1)),
    1.25: ((1.2, None), (1.25, 1), (-1.25, -1)),
    1.3: ((1.2, None), (1.28, None), (-1.3, -1)),
    2.0: ((1.2, None), (1.28, None), (-2.0, -1)),
}


@pytest.mark.parametrize("ratio", TABLE)
def test_the_clipped_surrogate_and_its_gradient_match_the_table(ratio):
    symmetric, higher, negative = TABLE[ratio]
    cases = [(1, 0.2, symmetric), (1, 0.28, higher), (-1, 0.2, negative), (-1, 0.28, negative)]
    for advantage, high, (objective, slope) in cases:
        got, gradient = surrogate_and_gradient(ratio, advantage, low=0.2, high=high)
        assert got == pytest.approx(objective, abs=1e-9)
        if ratio != 1.2 or high != 0.2:  # exactly on the bound the slope is a matter of taste
            assert gradient == pytest.approx(slope or 0.0, abs=1e-9)


def test_clip_higher_lowers_the_loss_of_a_batch_with_rising_tokens():
    # r = (.7, 1.25, 1.5), A = (-1, 1, 1). Symmetric: -(−.8 + 1.2 + 1.2)/3; higher: -(−.8 + 1.25 + 1.28)/3
    logp = torch.tensor([[0.7, 1.25, 1.5]]).log()
    advantages, weights = torch.tensor([[-1.0, 1.0, 1.0]]), token_weights(torch.ones(1, 3, dtype=torch.bool))
    old = torch.zeros(1, 3)
    symmetric = weighted_sum(clipped_surrogate(logp, old, advantages, low=0.2, high=0.2), weights)
    higher = weighted_sum(clipped_surrogate(logp, old, advantages, low=0.2, high=0.28), weights)
    assert symmetric.item() == pytest.approx(-0.5333333, abs=1e-6)
    assert higher.item() == pytest.approx(-0.5766667, abs=1e-6)


@pytest.mark.parametrize(("high", "ceiling"), [(0.2, 0.012), (0.28, 0.0128)])
def test_clip_higher_raises_the_largest_probability_of_an_unlikely_token(high, ceiling):
    # DAPO §3.1: from probability .01 there is a gradient up to the ceiling, and none above it
    for probability, rises in ((ceiling * 0.999, True), (ceiling * 1.001, False)):
        _, gradient = surrogate_and_gradient(probability / 0.01, 1.0, low=0.2, high=high)
        assert (gradient > 0) == rises


@given(st.floats(0.01, 10), st.floats(-5, -0.01), st.floats(0.2, 10))
def test_the_upper_bound_has_no_effect_if_the_advantage_is_negative(ratio, advantage, high):
    narrow = surrogate_and_gradient(ratio, advantage, low=0.2, high=0.2)
    assert surrogate_and_gradient(ratio, advantage, low=0.2, high=high) == narrow


@given(st.floats(0.01, 10), st.floats(0.01, 5), st.floats(0.2, 1.0))
def test_the_lower_bound_has_no_effect_if_the_advantage_is_positive(ratio, advantage, low):
    narrow = surrogate_and_gradient(ratio, advantage, low=0.2, high=0.2)
    assert surrogate_and_gradient(ratio, advantage, low=low, high=0.2) == narrow


def test_at_ratio_one_the_gradient_is_minus_the_mean_of_advantage_times_grad_logp():
    logp = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantages = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    loss = clipped_surrogate(logp, logp.detach(), advantages, low=0.2, high=0.28)
    weighted_sum(loss, token_weights(mask)).backward()
    torch.testing.assert_close(logp.grad, torch.where(mask, -advantages / 7, 0.0))


def test_only_the_current_log_probability_gets_a_gradient():
    logp, old, advantages = (torch.tensor([[-1.0]], requires_grad=True) for _ in range(3))
    clipped_surrogate(logp, old, advantages, low=0.2, high=0.28).sum().backward()
    assert logp.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    # also when someone forgets to detach: with ρ = 1 the gradient must be -A, not 0
    fresh = torch.tensor([[-1.0]], requires_grad=True)
    clipped_surrogate(fresh, fresh, torch.tensor([[2.0]]), low=0.2, high=0.28).sum().backward()
    torch.testing.assert_close(fresh.grad, torch.tensor([[-2.0]]))


def test_a_ratio_that_overflows_is_clipped():
    logp = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
    old = torch.full((1, 3), -200.0)
    loss = clipped_surrogate(logp, old, torch.tensor([[1.0, 0.0, -1.0]]), low=0.2, high=0.28)
    torch.testing.assert_close(loss, torch.tensor([[-1.28, 0.0, INF]]))
    loss.sum().backward()
    torch.testing.assert_close(logp.grad, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("ratio", "c", "objective"), [(5.0, 3.0, -3.0), (5.0, 10.0, -5.0), (12.0, 3.0, -3.0), (12.0, 10.0, -10.0)]
)
def test_dual_clip_bounds_the_loss_of_a_token_with_negative_advantage(ratio, c, objective):
    got, gradient = surrogate_and_gradient(ratio, -1.0, low=0.2, high=0.2, c=c)
    assert got == pytest.approx(objective)
    assert gradient == pytest.approx(-1.0 if ratio < c else 0.0)


def test_dual_clip_keeps_positive_advantages_and_bounds_an_infinite_loss():
    advantages = torch.tensor([[1.0, 1.0, -1.0, -2.0]])
    loss = torch.tensor([[-1.28, 7.0, INF, 2.0]])  # 7 cannot happen; it shows that the sign of A decides
    torch.testing.assert_close(dual_clip(loss, advantages, c=3.0), torch.tensor([[-1.28, 7.0, 3.0, 2.0]]))


# --------------------------------------------------------------------------- the critic's loss


def test_the_value_loss_is_half_the_squared_error():
    # ½·(.9 - 1)² = .005;  ½·(.4 - 1)² = .18
    loss = value_loss(torch.tensor([[0.9, 0.4]]), torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(loss, torch.tensor([[0.005, 0.18]]))


def test_value_clipping_uses_the_larger_error():
    # V_old = .5, clip .2. V = .9 counts as .7: max(.005, ½·.3² = .045). V = .4 is near enough: .18
    values = torch.tensor([[0.9, 0.4]], requires_grad=True)
    loss = value_loss(values, torch.ones(1, 2), old_values=torch.full((1, 2), 0.5), clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([[0.045, 0.18]]))
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.6]]))  # V - y where not clipped


def test_old_values_without_a_clip_have_no_effect():
    values, returns = torch.tensor([[0.9]]), torch.ones(1, 1)
    assert torch.equal(value_loss(values, returns, old_values=torch.zeros(1, 1)), value_loss(values, returns))


def test_the_gradient_of_the_value_loss_is_the_error_and_only_values_get_it():
    values, returns = torch.tensor([[0.9]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
    value_loss(values, returns).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[-0.1]]))
    assert returns.grad is None


# --------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("d", "k1", "k2", "k3"),
    [
        (0.2, 0.2, 0.02, 0.0187308),
        (-0.2, -0.2, 0.02, 0.0214028),
        (1.0, 1.0, 0.5, 0.3678794),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_kl_estimators_match_the_table(d, k1, k2, k3):
    logp, ref = torch.tensor([[d - 1.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    assert kl_divergence(logp, ref, estimator="k1").item() == pytest.approx(k1, abs=1e-7)
    assert kl_divergence(logp, ref, estimator="k2").item() == pytest.approx(k2, abs=1e-7)
    assert kl_divergence(logp, ref, estimator="k3").item() == pytest.approx(k3, abs=1e-7)
    assert torch.equal(kl_divergence(logp, ref), kl_divergence(logp, ref, estimator="k3"))


def test_k1_and_k3_are_unbiased_and_k2_has_the_gradient_of_the_kl_divergence():
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ref = torch.tensor([0.0, 0.5, -0.5, 0.2], dtype=torch.float64).log_softmax(0)
    probabilities = logp.exp()
    kl = (probabilities * (logp - ref)).sum()
    (kl_gradient,) = torch.autograd.grad(kl, logits, retain_graph=True)
    gradients = {}
    for estimator in ("k1", "k2", "k3"):
        # the expectation over tokens sampled from π, which are constants to the gradient
        mean = (probabilities.detach() * kl_divergence(logp, ref, estimator=estimator)).sum()
        if estimator != "k2":
            torch.testing.assert_close(mean, kl)
        (gradients[estimator],) = torch.autograd.grad(mean, logits, retain_graph=True)
    torch.testing.assert_close(gradients["k2"], kl_gradient)
    assert not torch.allclose(gradients["k1"], kl_gradient, atol=1e-3)
    assert not torch.allclose(gradients["k3"], kl_gradient, atol=1e-3)


# --------------------------------------------------------------------------- garbage, pitfall 10

LOSSES = {
    "clipped_surrogate": lambda x, a, b: clipped_surrogate(x, a, b, low=0.2, high=0.28),
    "dual_clip": lambda x, a, b: dual_clip(clipped_surrogate(x, a, b, low=0.2, high=0.28), b, c=3.0),
    "value_loss": lambda x, a, _: value_loss(x, a),
    "clipped value_loss": lambda x, a, b: value_loss(x, a, old_values=b, clip=0.2),
    "k1": lambda x, a, _: kl_divergence(x, a, estimator="k1"),
    "k2": lambda x, a, _: kl_divergence(x, a, estimator="k2"),
    "k3": lambda x, a, _: kl_divergence(x, a, estimator="k3"),
}
MASK = torch.tensor([[True, False, True, False], [False, True, True, True], [False, False, False, False]])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e38, -1e38, -1e4])
@pytest.mark.parametrize("dirty", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("cleaned", [True, False])
def test_nan_and_inf_outside_the_mask_change_neither_loss_nor_gradient(loss, garbage, dirty, cleaned):
    # pitfall 10: with masked() on the inputs, and even without it
    rng = torch.Generator().manual_seed(0)
    inputs = list(torch.randn(3, *MASK.shape, generator=rng))

    def loss_and_gradient(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        per_token = LOSSES[loss](*(masked(y, MASK) for y in (x, a, b)) if cleaned else (x, a, b))
        total = weighted_sum(per_token, token_weights(MASK))
        total.backward()
        assert x.grad is not None
        return total.detach(), x.grad

    clean_loss, clean_gradient = loss_and_gradient(*inputs)
    for i in dirty:
        inputs[i] = inputs[i].masked_fill(~MASK, garbage)
    dirty_loss, dirty_gradient = loss_and_gradient(*inputs)
    assert clean_loss.isfinite()
    torch.testing.assert_close(dirty_loss, clean_loss, atol=0, rtol=0)
    torch.testing.assert_close(dirty_gradient, clean_gradient, atol=0, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_nan_inside_the_mask_makes_the_loss_nan(loss):
    x, a, b = torch.randn(3, *MASK.shape, generator=torch.Generator().manual_seed(0))
    x[0, 0] = NAN
    assert not weighted_sum(LOSSES[loss](x, a, b), token_weights(MASK)).isfinite()


def test_masked_inputs_prevent_nan_gradients_that_masked_outputs_do_not():
    # the "double where": exp(1000) is inf, and the gradient of where(mask, exp(x), 0) is 0·inf = nan
    mask, x = torch.tensor([[True, False]]), torch.tensor([[0.0, 1000.0]], requires_grad=True)
    torch.where(mask, x.exp(), 0.0).sum().backward()
    assert x.grad is not None
    assert x.grad.isnan().any()
    x.grad = None
    weighted_sum(masked(x, mask).exp(), token_weights(mask)).backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 0.0]]))


def test_masked_selects_instead_of_multiplying():
    # pitfall 10: 0·nan is nan
    x = torch.tensor([[1.0, NAN, INF]], requires_grad=True)
    clean = masked(x, torch.tensor([[True, False, False]]))
    assert clean.tolist() == [[1.0, 0.0, 0.0]]
    clean.square().sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[2.0, 0.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_inputs_are_converted_before_the_arithmetic(loss, dtype):
    x, a, b = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x.requires_grad_()
    computed = LOSSES[loss](x, a, b)
    assert computed.dtype == torch.float32
    assert torch.equal(computed, LOSSES[loss](x.float(), a.float(), b.float()))
    computed.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
