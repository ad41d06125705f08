"""Weights worked by hand, and the promise behind them: however a minibatch is cut, one gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vapo.algo import (
    clipped_surrogate,
    gae,
    positive_weights,
    sequence_weights,
    terminal_rewards,
    token_weights,
    value_loss,
    weighted_sum,
)

# A has 2 tokens with loss 1, B has 8 with loss .1
MASK = torch.arange(8) < torch.tensor([[2], [8]])
LOSS = torch.tensor([[1.0] * 8, [0.1] * 8])


def test_sequence_weights_average_responses_and_token_weights_average_tokens():
    # (1 + .1) / 2 = .55;  (2·1 + 8·.1) / 10 = .28
    assert weighted_sum(LOSS, sequence_weights(MASK)).item() == pytest.approx(0.55)
    assert weighted_sum(LOSS, token_weights(MASK)).item() == pytest.approx(0.28)


def test_a_token_of_a_short_response_has_more_weight_only_in_sequence_weights():
    by_sequence, by_token = sequence_weights(MASK), token_weights(MASK)
    torch.testing.assert_close(by_sequence[:, 0], torch.tensor([0.25, 0.0625]))  # 1/(2·2), 1/(2·8)
    torch.testing.assert_close(by_token[:, 0], torch.tensor([0.1, 0.1]))
    assert by_sequence[0, 2:].eq(0).all()
    assert by_token[0, 2:].eq(0).all()


def test_a_long_response_outweighs_a_short_one_only_in_token_weights():
    # 4 tokens with loss 1, 400 with -.1: (1 - .1)/2 = .45;  (4 - 40)/404 = -.0891089
    mask = torch.arange(400) < torch.tensor([[4], [400]])
    loss = torch.tensor([[1.0], [-0.1]]).expand(2, 400)
    assert weighted_sum(loss, sequence_weights(mask)).item() == pytest.approx(0.45, abs=1e-6)
    assert weighted_sum(loss, token_weights(mask)).item() == pytest.approx(-0.0891089, abs=1e-6)


def test_micro_batches_add_up_to_the_minibatch():
    # pitfall 5: a mean of micro-batch means would be .55
    weights = token_weights(MASK)
    parts = [weighted_sum(LOSS[[i]], weights[[i]]).item() for i in (0, 1)]
    assert sum(parts) == pytest.approx(0.28)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_parts_with_the_total_of_the_whole_have_its_weights(cut: int):
    mask = torch.arange(6) < torch.tensor([[2], [6], [0], [1]])
    correct = torch.tensor([True, False, True, True])
    parts = [slice(0, cut), slice(cut, None)]
    tokens, responses, right = mask.sum(), (mask.sum(1) > 0).sum(), mask[correct].sum()
    for whole, of_part in [
        (token_weights(mask), lambda rows: token_weights(mask[rows], total=tokens)),
        (sequence_weights(mask), lambda rows: sequence_weights(mask[rows], total=responses)),
        (positive_weights(mask, correct), lambda rows: positive_weights(mask[rows], correct[rows], total=right)),
    ]:
        torch.testing.assert_close(torch.cat([of_part(rows) for rows in parts]), whole)


def test_a_total_is_a_number_or_a_tensor_and_counts_these_rows_at_least():
    assert torch.equal(token_weights(MASK, total=40), token_weights(MASK, total=torch.tensor(40)))
    assert token_weights(MASK, total=40).sum() == pytest.approx(0.25)
    empty = torch.zeros(1, 3, dtype=torch.bool)
    assert token_weights(empty, total=0).eq(0).all()  # a step in which nothing is right
    with pytest.raises(ValueError, match=r"token_weights got total=9, and these rows alone count 10"):
        token_weights(MASK, total=9)
    with pytest.raises(ValueError, match=r"sequence_weights got total=1, and these rows alone count 2"):
        sequence_weights(MASK, total=1)


# --------------------------------------------------------------------------- the positive-example loss

LOGP = torch.tensor([[-0.1, -0.2, 0.0], [-0.3, -0.1, -0.5], [-2.0, -2.0, 0.0]])
LOGP_MASK = torch.arange(3) < torch.tensor([[2], [3], [2]])
CORRECT = torch.tensor([True, True, False])


def test_the_positive_loss_is_the_mean_over_tokens_of_correct_responses():
    # (.1 + .2 + .3 + .1 + .5) / 5 = .24; with μ = .1 and L_PPO = .28 the total is .304.
    # A mean of response means would be (.15 + .3) / 2 = .225.
    nll = weighted_sum(-LOGP, positive_weights(LOGP_MASK, CORRECT)).item()
    assert nll == pytest.approx(0.24)
    assert 0.28 + 0.1 * nll == pytest.approx(0.304)


def test_the_positive_loss_does_not_grow_with_the_number_of_micro_batches():
    # pitfall 3: normalised by each micro-batch's own count it would be .15 + .3 = .45
    weights = positive_weights(LOGP_MASK, CORRECT)
    parts = [weighted_sum(-LOGP[[i]], weights[[i]]).item() for i in range(3)]
    assert sum(parts) == pytest.approx(0.24)
    assert parts[2] == 0


def test_without_a_correct_response_the_positive_loss_is_zero():
    weights = positive_weights(LOGP_MASK, torch.zeros(3, dtype=torch.bool))
    assert weights.eq(0).all()
    assert weighted_sum(-LOGP, weights).item() == 0


def test_positive_weights_raise_for_rewards_instead_of_verdicts():
    # pitfall 4 and its cousin in NeMo RL: a right answer with the full overlong penalty has shaped reward 0
    with pytest.raises(ValueError, match="bool correct"):
        positive_weights(LOGP_MASK, torch.tensor([1.0, 0.0, 0.0]))  # type: ignore[arg-type]


# --------------------------------------------------------------------------- properties

seeds = st.integers(0, 2**31)


def random_mask(seed: int, rows: int = 6, width: int = 9) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(rows, width, generator=rng) < torch.rand(rows, 1, generator=rng) * 1.3


@given(seeds)
def test_weights_sum_to_one_over_the_mask_and_are_zero_outside(seed):
    mask = random_mask(seed)
    mask[0, 0] = True
    correct = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5
    correct[0] = True
    for weights, where in (
        (token_weights(mask), mask),
        (sequence_weights(mask), mask),
        (positive_weights(mask, correct), mask & correct[:, None]),
    ):
        assert weights.dtype == torch.float32
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        assert torch.equal(weights > 0, where)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_an_empty_mask_has_weights_zero(shape):
    empty = torch.zeros(shape, dtype=torch.bool)
    for weights in (token_weights(empty), sequence_weights(empty), positive_weights(empty, empty.any(1))):
        assert weights.eq(0).all()
        assert weighted_sum(torch.ones(shape), weights).item() == 0


def test_responses_without_trainable_tokens_do_not_change_the_other_weights():
    # dropped rows (overlong filtering, invalid verdicts) are rows that are all False
    rows = torch.cat([MASK, torch.zeros(3, 8, dtype=torch.bool)])
    torch.testing.assert_close(sequence_weights(rows)[:2], sequence_weights(MASK))


def test_padding_does_not_change_a_sequence_level_average():
    # pitfall 21: with two pads of 9 averaged in, a row's mean would move
    mask = torch.tensor([[True, True, False, False]])
    per_token = torch.tensor([[0.5, 0.7, 9.0, 9.0]])
    assert weighted_sum(per_token, sequence_weights(mask)).item() == pytest.approx(0.6)


def test_tokens_of_weight_zero_change_neither_the_weighted_sum_nor_its_gradient():
    # pitfall 10: 0·nan is nan, so they are left out by selection
    per_token = torch.tensor([[1.0, float("nan"), float("inf")]], requires_grad=True)
    total = weighted_sum(per_token, torch.tensor([[0.5, 0.0, 0.0]]))
    total.backward()
    assert total.item() == 0.5
    torch.testing.assert_close(per_token.grad, torch.tensor([[0.5, 0.0, 0.0]]))


def test_negative_weights_count_and_a_nan_weight_gives_nan():
    assert weighted_sum(torch.ones(1, 2), torch.tensor([[0.5, -2.0]])).item() == -1.5
    assert weighted_sum(torch.ones(1, 2), torch.tensor([[0.5, float("nan")]])).isnan()


def gradients(rows: list[list[int]], padding: int, packed: bool, seed: int, by: str) -> list[Tensor]:
    """Gradients of policy, critic and positive loss of a linear model, the rows cut into micro-batches."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(6, 9, 4, generator=rng, dtype=torch.float64)
    old_logp, values = torch.randn(2, 6, 9, generator=rng, dtype=torch.float64)
    mask, correct = random_mask(seed), torch.rand(6, generator=rng) < 0.5
    policy, critic = (torch.randn(4, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))

    rewards = terminal_rewards(correct.double(), mask)
    advantages = gae(rewards, values, mask, lam=0.9)
    returns = gae(rewards, values, mask, lam=1.0) + values
    weights = token_weights(mask) if by == "token" else sequence_weights(mask)
    positive = positive_weights(mask, correct)

    def laid_out(x: Tensor, micro: list[int]) -> Tensor:
        if packed:  # the trainable tokens of all rows in one line
            return x[micro][mask[micro]].unsqueeze(0)
        pad = (0, 0) * (x.ndim - 2) + (padding, padding)
        return torch.nn.functional.pad(x[micro], pad, value=float("nan") if x.dtype.is_floating_point else 0)

    for micro in rows:
        w, w_positive = laid_out(weights, micro).nan_to_num(0), laid_out(positive, micro).nan_to_num(0)
        inputs = laid_out(features, micro).nan_to_num(0)
        logp = inputs @ policy
        surrogate = clipped_surrogate(logp, laid_out(old_logp, micro), laid_out(advantages, micro), low=0.2, high=0.28)
        loss = weighted_sum(surrogate, w) + 0.1 * weighted_sum(-logp, w_positive)
        loss = loss + weighted_sum(value_loss(inputs @ critic, laid_out(returns, micro)), w)
        loss.backward()
    return [p.grad for p in (policy, critic) if p.grad is not None]


@given(seeds, st.permutations(range(6)), st.integers(1, 5), st.integers(0, 3), st.booleans())
@pytest.mark.parametrize("by", ["token", "sequence"])
def test_gradients_do_not_depend_on_micro_batches_padding_packing_or_order(by, seed, order, cut, padding, packed):
    # pitfalls 3 and 5: policy, critic and positive loss together
    whole = gradients([list(range(6))], padding=0, packed=False, seed=seed, by=by)
    parts = gradients([list(order[:cut]), list(order[cut:])], padding=padding, packed=packed, seed=seed, by=by)
    assert len(whole) == 2
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-12)
