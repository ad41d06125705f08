"""Wrong arguments are refused with the thing, the place and the fix; and what holds for all functions."""

import sys

import pytest
import torch

import vapo.algo
from vapo.algo import (
    clipped_surrogate,
    dual_clip,
    explained_variance,
    gae,
    group_advantages,
    informative_groups,
    kl_divergence,
    length_adaptive_lambda,
    masked,
    positive_weights,
    relative_lambda,
    sequence_weights,
    soft_overlong_punishment,
    terminal_rewards,
    token_weights,
    value_loss,
    weighted_sum,
    whiten,
)

X, Y, LONG = torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.long)
MASK, B = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)

WRONG = {
    "rewards and values differ": (lambda: gae(X, Y, MASK, lam=1.0), r"rewards \(2, 3\), values \(3, 2\)"),
    "values would broadcast": (lambda: gae(X, X[:1], MASK, lam=1.0), "does not broadcast"),
    "gae without rows": (lambda: gae(B, B, B.bool(), lam=1.0), r"mask\[None\]"),
    "gae with a float mask": (lambda: gae(X, X, X, lam=1.0), r"\.bool\(\)"),
    "lam above 1": (lambda: gae(X, X, MASK, lam=1.5), r"lam in \[0, 1\], got 1.5"),
    "lam below 0": (lambda: gae(X, X, MASK, lam=-4.0), "length_adaptive_lambda"),
    "lam of nan": (lambda: gae(X, X, MASK, lam=float("nan")), "lam in"),
    "one lam of a row below 0": (lambda: gae(X, X, MASK, lam=torch.tensor([0.5, -4.0])), "lam in"),
    "a lam per token": (lambda: gae(X, X, MASK, lam=torch.zeros(3)), r"lam of shape \(2,\)"),
    "gamma above 1": (lambda: gae(X, X, MASK, lam=1.0, gamma=1.1), "gamma"),
    "alpha of 0": (lambda: length_adaptive_lambda(B, 0.0), "positive alpha"),
    "infinite alpha": (lambda: length_adaptive_lambda(B, float("inf")), "positive alpha"),
    "q of 0": (lambda: relative_lambda(B, 0.0), r"q in \(0, 1\]"),
    "unknown std": (lambda: group_advantages(B, B.long(), std="bessel"), "population"),
    "float groups": (lambda: group_advantages(B, B), "integer"),
    "groups as a matrix": (lambda: group_advantages(X, LONG), "one integer per response"),
    "fewer groups": (lambda: group_advantages(B, LONG[0]), r"groups \(3,\)"),
    "valid by number": (lambda: group_advantages(B, B.long(), valid=B), "bool valid"),
    "right by number": (lambda: informative_groups(B, B.long()), "bool right"),
    "low above 1": (lambda: clipped_surrogate(X, X, X, low=1.2, high=0.2), "low in"),
    "negative high": (lambda: clipped_surrogate(X, X, X, low=0.2, high=-0.1), "high >= 0"),
    "an advantage per response": (lambda: clipped_surrogate(X, X, B, low=0.2, high=0.2), "expand_as"),
    "c of 1": (lambda: dual_clip(X, X, c=1.0), "c > 1"),
    "c with other advantages": (lambda: dual_clip(X, Y, c=3.0), "one shape"),
    "clip without old values": (lambda: value_loss(X, X, clip=0.2), "old_values"),
    "clip of 0": (lambda: value_loss(X, X, old_values=X, clip=0.0), "positive clip"),
    "a return per response": (lambda: value_loss(X, B), "one shape"),
    "old values of another shape": (lambda: value_loss(X, X, old_values=Y, clip=0.2), "old_values"),
    "unknown KL estimator": (lambda: kl_divergence(X, X, estimator="k4"), "k1, k2, k3"),
    "KL shapes": (lambda: kl_divergence(X, Y), "ref_logp"),
    "float mask": (lambda: token_weights(X), "bool mask"),
    "flat mask": (lambda: sequence_weights(MASK[0]), r"mask\[None\]"),
    "verdicts for other rows": (lambda: positive_weights(MASK, MASK[0]), r"correct of shape \(2,\)"),
    "weights of another shape": (lambda: weighted_sum(X, Y), "one shape"),
    "mask of another shape": (lambda: masked(X, MASK.T), "one shape"),
    "whiten shapes": (lambda: whiten(Y, MASK), "one shape"),
    "explained variance shapes": (lambda: explained_variance(X, Y, MASK), "one shape"),
    "outcomes per token": (lambda: terminal_rewards(X, MASK), r"outcomes of shape \(2,\)"),
    "bootstrap of other rows": (lambda: terminal_rewards(B, MASK, torch.zeros(3)), "bootstrap"),
    "cache beyond the limit": (lambda: soft_overlong_punishment(B, 20, 21), "cache_length <= max_length"),
    "no cache": (lambda: soft_overlong_punishment(B, 20, 0), "0 < cache_length"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_raise_an_error_that_names_them(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_shape_annotations_are_checked_in_tests():
    with pytest.raises(TypeError, match="lengths"):
        length_adaptive_lambda(torch.zeros(2, 2))


@pytest.mark.parametrize("name", vapo.algo.__all__)
def test_every_public_function_has_a_summary_and_a_source(name):
    doc = getattr(vapo.algo, name).__doc__
    assert doc
    assert doc.splitlines()[0].endswith((".", ":", ","))
    assert "Source: " in doc or name in {"weighted_sum", "masked", "lambdas"}


def test_the_package_does_not_import_jaxtyping():
    # jaxtyping is a development tool: its names exist for the type checker and the tests alone
    rooms = [module for name, module in sys.modules.items() if name.startswith("vapo.algo")]
    assert len(rooms) > 5
    assert not any({"jaxtyping", "Float", "Bool", "Int", "Num"} & vars(room).keys() for room in rooms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_low_precision_inputs_give_float32_outputs(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 3, generator=rng).to(dtype)
    lengths = torch.tensor([3.0, 40.0]).to(dtype)
    results = {
        "gae": gae(x, y, MASK, lam=0.95),
        "gae with λ per row": gae(x, y, MASK, lam=torch.tensor([0.5, 0.9])),
        "whiten": whiten(x, MASK),
        "masked": masked(x, MASK),
        "weighted_sum": weighted_sum(x, token_weights(MASK)),
        "explained_variance": explained_variance(x, y, MASK),
        "group_advantages": group_advantages(x[:, 0], torch.tensor([1, 1])),
        "terminal_rewards": terminal_rewards(x[:, 0], MASK, y[:, 0]),
        "length_adaptive_lambda": length_adaptive_lambda(lengths),
        "relative_lambda": relative_lambda(lengths, 0.1),
        "soft_overlong_punishment": soft_overlong_punishment(lengths, 41, 4),
    }
    for name, result in results.items():
        assert result.dtype == wide, name
    torch.testing.assert_close(results["gae"], gae(x.to(wide), y.to(wide), MASK, lam=0.95))
