"""GAE against numbers worked by hand; blocks of tokens against the loop of the textbook; masks and padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vapo.algo import gae, length_adaptive_lambda, terminal_rewards
from vapo.algo.advantages import BLOCK

# δ_t = r_t + V_{t+1} - V_t = (.6 - .5, .4 - .6, .8 - .4, 1 - .8) = (.1, -.2, .4, .2)
VALUES = torch.tensor([[0.5, 0.6, 0.4, 0.8]])
REWARDS = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
ALL = torch.ones(1, 4, dtype=torch.bool)
NAN, INF = float("nan"), float("inf")


def assert_rows(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor([expected]), atol=1e-6, rtol=1e-6)


def loop_gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: Tensor, gamma: float) -> Tensor:
    """The recursion as the papers write it, one response and one token at a time, in double precision."""
    advantages = torch.zeros_like(values, dtype=torch.float64)
    for i in range(len(mask)):
        next_value = next_advantage = 0.0
        for t in reversed(range(mask.shape[1])):
            if mask[i, t]:
                delta = rewards[i, t].item() + gamma * next_value - values[i, t].item()
                next_advantage = delta + gamma * lam[i].item() * next_advantage
                next_value = values[i, t].item()
                advantages[i, t] = next_advantage
    return advantages


def random_batch(seed: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards on every token, values, a mask with holes and perhaps empty rows, and one λ per row."""
    rng = torch.Generator().manual_seed(seed)
    density = torch.rand(rows, 1, generator=rng) * 1.4  # some rows full, some nearly empty
    mask = torch.rand(rows, width, generator=rng) < density
    rewards, values = torch.randn(2, rows, width, generator=rng)
    return rewards, values, mask, torch.rand(rows, generator=rng)


seeds, widths = st.integers(0, 2**31), st.integers(1, 70)


# --------------------------------------------------------------------------- numbers worked by hand


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.0, [0.1, -0.2, 0.4, 0.2]),  # A = δ
        # .2;  .4 + .5·.2 = .5;  -.2 + .5·.5 = .05;  .1 + .5·.05 = .125
        (0.5, [0.125, 0.05, 0.5, 0.2]),
        (1 - 1 / (1.5 * 4), [0.326852, 0.272222, 0.566667, 0.2]),
        # .4 + .95·.2 = .59;  -.2 + .95·.59 = .3605;  .1 + .95·.3605 = .442475
        (0.95, [0.442475, 0.3605, 0.59, 0.2]),
        (1.0, [0.5, 0.4, 0.6, 0.2]),  # 1 - V
    ],
)
def test_gae_of_four_tokens_matches_hand_computed_values(lam, expected):
    advantages = gae(REWARDS, VALUES, ALL, lam=lam)
    assert_rows(advantages, expected)
    assert_rows(advantages + VALUES, [a + v for a, v in zip(expected, VALUES[0].tolist(), strict=True)])


def test_gae_with_the_length_adaptive_lambda_matches_hand_computed_values():
    lengths = ALL.sum(1)
    # α·l = .5·4 = 2 -> λ = .5;  1.5·4 = 6 -> λ = 5/6;  .05·4 = .2 -> λ = -4, clamped to 0
    assert_rows(gae(REWARDS, VALUES, ALL, lam=length_adaptive_lambda(lengths, 0.5)), [0.125, 0.05, 0.5, 0.2])
    sao = gae(REWARDS, VALUES, ALL, lam=length_adaptive_lambda(lengths, 1.5))
    assert_rows(sao, [0.326852, 0.272222, 0.566667, 0.2])
    assert_rows(gae(REWARDS, VALUES, ALL, lam=length_adaptive_lambda(lengths)), [0.1, -0.2, 0.4, 0.2])


def test_gae_discounts_both_the_next_value_and_the_trace():
    # γ = .99: δ = (.99·.6 - .5, .99·.4 - .6, .99·.8 - .4, .2) = (.094, -.204, .392, .2); γλ = .9405
    # .392 + .9405·.2 = .5801;  -.204 + .9405·.5801 = .341584;  .094 + .9405·.341584 = .41526
    advantages = gae(REWARDS, VALUES, ALL, lam=0.95, gamma=0.99)
    assert_rows(advantages, [0.41526, 0.341584, 0.5801, 0.2])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.0, [0.1, -0.2, 0.4, -1.8]),
        (0.95, [-1.272275, -1.4445, -1.31, -1.8]),
        (1.0, [-1.5, -1.6, -1.4, -1.8]),  # -1 - V
    ],
)
def test_gae_of_a_wrong_answer_is_negative(lam, expected):
    assert_rows(gae(-REWARDS, VALUES, ALL, lam=lam), expected)


def test_decoupled_gae_uses_the_policys_lambda_for_advantages_and_lambda_1_for_returns():
    assert_rows(gae(REWARDS, VALUES, ALL, lam=0.95), [0.442475, 0.3605, 0.59, 0.2])
    assert_rows(gae(REWARDS, VALUES, ALL, lam=1.0) + VALUES, [1.0, 1.0, 1.0, 1.0])
    # coupled (plain PPO), the critic would learn this instead
    assert_rows(gae(REWARDS, VALUES, ALL, lam=0.95) + VALUES, [0.942475, 0.9605, 0.99, 1.0])


def n_step_average(values: list[float], outcome: float, t: int, lam: float) -> float:
    """(1-λ) Σ_h λ^(h-1) G_{t:t+h} + λ^(T-t-1) G_{t:T}, where G_{t:t+h} = V_{t+h} and G_{t:T} = R."""
    horizon = len(values) - t
    bootstrapped = sum(lam ** (h - 1) * values[t + h] for h in range(1, horizon))
    return (1 - lam) * bootstrapped + lam ** (horizon - 1) * outcome


def test_gae_is_the_average_of_n_step_returns_minus_the_value():
    # the n-step returns from token 0 are (.6, .4, .8, 1)
    values = VALUES[0].tolist()
    averages = [n_step_average(values, 1.0, t, 0.95) for t in range(4)]
    assert averages == pytest.approx([0.942475, 0.9605, 0.99, 1.0], abs=1e-6)
    assert_rows(gae(REWARDS, VALUES, ALL, lam=0.95), [g - v for g, v in zip(averages, values, strict=True)])


def test_the_weight_of_the_outcome_n_steps_before_the_end_is_lambda_to_the_n():
    # .95^n
    mask = torch.ones(1, 201, dtype=torch.bool)
    rewards = terminal_rewards(torch.tensor([1.0]), mask)
    advantages = gae(rewards, torch.zeros(1, 201), mask, lam=0.95).squeeze(0)
    reached = {n: advantages[-1 - n].item() for n in (0, 10, 50, 100, 200)}
    expected = {0: 1.0, 10: 0.5987369, 50: 0.0769450, 100: 0.0059205, 200: 3.50527e-05}
    assert reached == pytest.approx(expected, rel=1e-5)


def test_forty_tokens_with_alpha_005_have_lambda_one_half():
    # λ = 1 - 1/(.05·40) = .5
    mask = torch.ones(1, 40, dtype=torch.bool)
    rewards, lam = terminal_rewards(torch.tensor([1.0]), mask), length_adaptive_lambda(mask.sum(1))
    blind = gae(rewards, torch.zeros(1, 40), mask, lam=lam)
    assert_rows(blind[:, -4:], [0.125, 0.25, 0.5, 1.0])
    assert blind[0, 0].item() == pytest.approx(1.819e-12, rel=1e-3)
    undecided = gae(rewards, torch.full((1, 40), 0.5), mask, lam=lam)
    assert_rows(undecided[:, -5:], [0.03125, 0.0625, 0.125, 0.25, 0.5])


def test_gae_matches_the_three_token_example_of_bpco():
    # α = .4, l = 3: λ = 1 - 1/1.2 = 1/6; δ = (.3, .3, .2); A = (.3 + .333333/6, .3 + .2/6, .2)
    mask = torch.ones(1, 3, dtype=torch.bool)
    lam = length_adaptive_lambda(mask.sum(1), alpha=0.4)
    torch.testing.assert_close(lam, torch.tensor([1 / 6]))
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.8]])
    assert_rows(gae(rewards, values, mask, lam=lam), [0.355556, 0.333333, 0.2])


# --------------------------------------------------------------------------- masks


def test_gae_skips_a_hole_in_the_mask():
    # pitfall 2 (tool tokens as transitions). With the hole as a state of value 0, the first two would be
    # .396851 and .312475.
    mask = torch.tensor([[True, True, False, True, True]])
    values = torch.tensor([[0.5, 0.6, 9.0, 0.4, 0.8]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    assert_rows(gae(rewards, values, mask, lam=0.95), [0.442475, 0.3605, 0.0, 0.59, 0.2])


def test_values_of_padding_do_not_change_the_advantages():
    # pitfall 1: two pads on which the critic says .3
    values, rewards = torch.tensor([[0.5, 0.6, 0.4, 0.8, 0.3, 0.3]]), torch.tensor([[0.0, 0, 0, 1, 0, 0]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    assert_rows(gae(rewards, values, mask, lam=0.95), [0.442475, 0.3605, 0.59, 0.2, 0.0, 0.0])
    # without a mask this is what comes out, and what must not
    unmasked = gae(rewards, values, torch.ones_like(mask), lam=0.95)
    assert_rows(unmasked[:, :4], [0.467553, 0.386898, 0.617788, 0.22925])


def test_a_large_value_after_the_last_token_does_not_change_the_advantages():
    # pitfall 1 as ROLL had it: (5.7, 6.0) came out. A_1 = 1, A_0 = .95·1
    mask, rewards = torch.tensor([[True, True, False]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert_rows(gae(rewards, torch.tensor([[0.0, 0.0, 100.0]]), mask, lam=0.95), [0.95, 1.0, 0.0])


def test_the_outcome_is_the_reward_of_the_last_token():
    # pitfall 18: with one more state of V = .9 after the last token, all advantages shrink
    late = gae(
        torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 0.6, 0.4, 0.8, 0.9]]),
        torch.ones(1, 5, dtype=torch.bool),
        lam=0.95,
    )
    assert_rows(late[:, :4], [0.438188, 0.355988, 0.58525, 0.195])
    mask = torch.tensor([[True, True, True, True, False]])
    on_time = terminal_rewards(torch.tensor([1.0]), mask)
    advantages = gae(on_time, torch.tensor([[0.5, 0.6, 0.4, 0.8, 0.9]]), mask, lam=0.95)
    assert_rows(advantages, [0.442475, 0.3605, 0.59, 0.2, 0.0])


def test_one_step_td_of_the_last_token_contains_the_outcome():
    # pitfall 18 as one library has it: with λ = 0 the last action never learns of R
    assert gae(REWARDS, VALUES, ALL, lam=0.0)[0, -1].item() == pytest.approx(1 - 0.8)


def test_rows_without_a_trainable_token_get_zeros():
    # pitfall 2: a fully masked sample
    mask = torch.stack([torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)])
    advantages = gae(REWARDS.repeat(2, 1), VALUES.repeat(2, 1), mask, lam=0.95)
    torch.testing.assert_close(advantages[0], torch.zeros(4), atol=0, rtol=0)
    assert_rows(advantages[1:], [0.442475, 0.3605, 0.59, 0.2])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_empty_batches_give_empty_advantages(shape):
    nothing = torch.zeros(shape)
    assert gae(nothing, nothing, nothing.bool(), lam=0.95).shape == shape


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e38])
def test_nan_and_inf_outside_the_mask_do_not_change_the_advantages(garbage):
    # pitfalls 1 and 10
    rewards, values, mask, lam = random_batch(0, rows=8, width=20)
    dirty_rewards, dirty_values = rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage)
    for bad, good in [
        ((dirty_rewards, values), (rewards, values)),
        ((rewards, dirty_values), (rewards, values)),
    ]:
        assert torch.equal(gae(*bad, mask, lam=lam), gae(*good, mask, lam=lam))
    assert gae(dirty_rewards, dirty_values, mask, lam=1.0).isfinite().all()


def test_a_nan_value_inside_the_mask_gives_nan_advantages():
    values = VALUES.clone()
    values[0, 2] = NAN
    assert gae(REWARDS, values, ALL, lam=0.95).isnan().any()


def test_a_nan_row_does_not_change_the_other_rows():
    values = VALUES.repeat(2, 1)
    values[0] = NAN
    advantages = gae(REWARDS.repeat(2, 1), values, ALL.repeat(2, 1), lam=0.95)
    assert_rows(advantages[1:], [0.442475, 0.3605, 0.59, 0.2])


# --------------------------------------------------------------------------- properties


@given(seeds, st.integers(1, 6), widths, st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_gae_equals_the_backward_loop(seed, rows, width, gamma):
    rewards, values, mask, lam = random_batch(seed, rows, width)
    expected = loop_gae(rewards, values, mask, lam, gamma)
    torch.testing.assert_close(
        gae(rewards, values, mask, lam=lam, gamma=gamma).double(), expected, atol=2e-5, rtol=1e-5
    )
    exact = gae(rewards.double(), values.double(), mask, lam=lam, gamma=gamma)
    torch.testing.assert_close(exact, expected, atol=1e-11, rtol=1e-11)


@given(seeds, widths)
def test_advantages_with_lambda_one_plus_values_equal_the_outcome(seed, width):
    _, values, mask, _ = random_batch(seed, 4, width)
    outcomes = torch.tensor([1.0, 0.0, -1.0, 0.3])
    returns = gae(terminal_rewards(outcomes, mask), values, mask, lam=1.0) + values
    torch.testing.assert_close(returns[mask], outcomes[:, None].expand_as(mask)[mask], atol=1e-5, rtol=0)


@given(seeds, widths)
def test_lambda_zero_is_the_one_step_td_error(seed, width):
    rewards, values, _, _ = random_batch(seed, 4, width)
    td = rewards + torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1) - values
    torch.testing.assert_close(gae(rewards, values, torch.ones_like(values).bool(), lam=0.0), td)


@given(seeds, widths, st.integers(0, 5), st.integers(0, 5))
def test_padding_on_either_side_does_not_change_the_advantages(seed, width, left, right):
    rewards, values, mask, lam = random_batch(seed, 4, width)  # pitfall 7: width means nothing

    def padded(x: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(x, (left, right), value=fill)

    wide = gae(padded(rewards, 7.0), padded(values, NAN), padded(mask, False), lam=lam)
    narrow = gae(rewards, values, mask, lam=lam)
    torch.testing.assert_close(wide, padded(narrow, 0.0), atol=1e-5, rtol=1e-5)


@given(seeds, widths, st.sampled_from([0.0, 0.6, 1.0]))
def test_equal_lambdas_per_row_give_the_same_advantages_as_one_number(seed, width, lam):
    rewards, values, mask, _ = random_batch(seed, 3, width)
    assert torch.equal(gae(rewards, values, mask, lam=torch.full((3,), lam)), gae(rewards, values, mask, lam=lam))


@given(seeds, widths, st.floats(0.0, 1.0))
def test_gae_is_the_average_of_n_step_returns_for_random_values(seed, width, lam):
    values = random_batch(seed, 1, width)[1].double()
    mask = torch.ones(1, width, dtype=torch.bool)
    rewards = terminal_rewards(torch.tensor([1.0], dtype=torch.float64), mask)
    averages = torch.tensor([[n_step_average(values[0].tolist(), 1.0, t, lam) for t in range(width)]])
    torch.testing.assert_close(gae(rewards, values, mask, lam=lam), averages.double() - values, atol=1e-5, rtol=1e-5)


def test_sixteen_thousand_tokens_by_sixty_four_match_the_closed_form():
    # V = 0: A_t = R·λ^(T-1-t)
    rows, width = 64, 16384
    mask = torch.ones(rows, width, dtype=torch.bool)
    lam = torch.linspace(0.9, 1.0, rows)
    rewards = terminal_rewards(torch.linspace(-1, 1, rows), mask)
    advantages = gae(rewards, torch.zeros(rows, width), mask, lam=lam)
    for distance in (0, 1, 100, 5000, width - 1):
        expected = torch.linspace(-1, 1, rows).double() * lam.double() ** distance
        torch.testing.assert_close(advantages[:, -1 - distance].double(), expected, atol=1e-9, rtol=2e-3)


def test_advantages_have_no_gradient():
    values = VALUES.clone().requires_grad_()
    assert not gae(REWARDS, values, ALL, lam=0.95).requires_grad


# --------------------------------------------------------------------------- cut-off responses


@pytest.mark.parametrize(
    ("bootstrap", "lam", "expected"),
    [
        (0.0, 0.95, [-0.4149, -0.542, -0.36, -0.8]),  # a failure: nothing after the cut
        (0.0, 1.0, [-0.5, -0.6, -0.4, -0.8]),
        (0.7, 0.95, [0.1852625, 0.08975, 0.305, -0.1]),  # V of the state after the cut; δ_3 = .7 - .8
        (0.7, 1.0, [0.2, 0.1, 0.3, -0.1]),
        (0.8, 0.95, [0.271, 0.18, 0.4, 0.0]),  # T-PPO: V of the last token again
        (0.8, 1.0, [0.3, 0.2, 0.4, 0.0]),
    ],
)
def test_bootstrapping_adds_a_value_to_the_last_reward(bootstrap, lam, expected):
    # pitfalls 19 and 20: the value to bootstrap with is that of the state *after* the last token
    rewards = terminal_rewards(torch.tensor([0.0]), ALL, bootstrap=torch.tensor([bootstrap]))
    assert_rows(gae(rewards, VALUES, ALL, lam=lam), expected)


@given(seeds, st.integers(2, 40), st.floats(0.0, 1.0))
def test_bootstrapping_equals_an_additional_state_with_that_value(seed, width, lam):
    # with a state of V = v after the cut, worth exactly v itself (r = v), its own TD error is 0
    values = random_batch(seed, 1, width)[1].double()
    mask, gamma = torch.ones(1, width, dtype=torch.bool), 0.9
    cut, after = mask.clone(), values[:, -1]
    cut[:, -1] = False
    rewards = terminal_rewards(after, mask)
    longer = gae(rewards, values, mask, lam=lam, gamma=gamma)
    bootstrapped = terminal_rewards(torch.zeros(1, dtype=torch.float64), cut, bootstrap=gamma * after)
    torch.testing.assert_close(gae(bootstrapped, values, cut, lam=lam, gamma=gamma)[:, :-1], longer[:, :-1])


@pytest.mark.parametrize("width", [BLOCK, BLOCK + 1, 3 * BLOCK - 1, 5 * BLOCK])
def test_blocks_of_tokens_add_up_to_the_loop(width):
    rewards, values, mask, lam = random_batch(width, 6, width)
    lam[0], lam[1] = 0.0, 1.0
    for rows in (mask, torch.arange(width)[None] < torch.tensor([[width], [width], [BLOCK], [BLOCK + 1], [1], [0]])):
        expected = loop_gae(rewards, values, rows, lam, 0.99).float()
        torch.testing.assert_close(gae(rewards, values, rows, lam=lam, gamma=0.99), expected, atol=2e-5, rtol=1e-5)


def test_products_of_lower_precision_do_not_reach_the_advantages(monkeypatch):
    # as bfloat16 products would round them; on a CPU that has none, the setting is all that there is to see
    rewards, values, mask, lam = random_batch(0, 4, 3 * BLOCK)
    expected = gae(rewards, values, mask, lam=lam)
    monkeypatch.setattr(torch, "bmm", lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    torch.testing.assert_close(gae(rewards, values, mask, lam=lam), expected, atol=2e-5, rtol=1e-5)
