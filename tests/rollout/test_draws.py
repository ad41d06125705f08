"""The hash, the inverse CDF, and their edges."""

from __future__ import annotations

import torch

from vapo.rollout.draws import draw_tokens, uniforms

LARGEST = 1.0 - 2.0**-53


def splitmix64(x: int) -> int:
    """The reference finaliser, on Python's unbounded integers."""
    mask = 2**64 - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def drawn(logits: list[float], u: float, temperature: float = 1.0, top_p: float = 1.0) -> tuple[int, float]:
    token, logprob = draw_tokens(
        torch.tensor([logits]), torch.tensor([u], dtype=torch.float64), temperature=temperature, top_p=top_p
    )
    return int(token), float(logprob)


def test_uniforms_are_splitmix64_of_seed_and_position():
    seeds = [0, 1, 2**63 - 1, 2**64 - 1, -1]
    rows = uniforms(seeds, 5)
    for seed, row in zip(seeds, rows.tolist(), strict=True):
        key = splitmix64(seed % 2**64)
        expected = [splitmix64((key + n * 0x9E3779B97F4A7C15) % 2**64) >> 11 for n in range(1, 6)]
        assert row == [value * 2.0**-53 for value in expected]


def test_uniforms_do_not_depend_on_the_batch_or_the_count():
    assert torch.equal(uniforms([5, 6, 7], 10)[1, :4], uniforms([6], 4)[0])


def test_uniforms_are_uniform_along_and_across_seeds():
    u = uniforms(range(500), 200)  # neighbouring seeds
    assert 0.0 <= float(u.min()) < float(u.max()) < 1.0
    for counts in (torch.histc(u.float(), 20, 0, 1), torch.histc(u[:, 0].float(), 20, 0, 1)):
        expected = float(counts.sum()) / 20
        assert float(((counts - expected) ** 2 / expected).sum()) < 44  # chi-square, 19 degrees, p = 0.001
    assert abs(float(torch.corrcoef(u)[0, 1:].mean())) < 0.02


def test_the_inverse_cdf_cuts_at_the_cumulative_probabilities():
    logits = torch.tensor([0.25, 0.5, 0.25]).log().tolist()
    for u, token in ((0.0, 0), (0.2499, 0), (0.2501, 1), (0.7499, 1), (0.7501, 2), (LARGEST, 2)):
        assert drawn(logits, u)[0] == token
    assert abs(drawn(logits, 0.5)[1] - torch.tensor(0.5).log()) < 1e-6


def test_a_token_of_probability_zero_is_never_drawn():
    inf = float("inf")
    for u in (0.0, 0.5, LARGEST):
        assert drawn([-inf, -inf, 0.0, -inf], u) == (2, 0.0)
        assert drawn([-200.0, 0.0, -200.0], u)[0] == 1  # exp(-200) is 0 in float32
        assert drawn([-inf, 0.0, 0.0, -inf], u, top_p=0.9)[0] in (1, 2)


def test_the_largest_uniform_stays_below_the_total_for_many_rows():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 40, generator=generator) * 5
    logits[:, -7:] = float("-inf")
    tokens, logprobs = draw_tokens(
        logits, torch.full((2000,), LARGEST, dtype=torch.float64), temperature=1.0, top_p=1.0
    )
    assert int(tokens.max()) <= 32
    assert torch.isfinite(logprobs).all()


def test_a_large_vocabulary_is_drawn_from_by_blocks_as_by_one_sum():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 9_999, generator=generator, dtype=torch.float64).float() ** 8
    weights[0, ::3] = 0.0
    weights[0, 2_048:4_096] = 0.0  # four whole blocks
    u = torch.cat([uniforms([7], 4_000)[0], torch.tensor([0.0, LARGEST], dtype=torch.float64)])
    tokens, _ = draw_tokens(weights.log().expand(len(u), -1), u, temperature=1.0, top_p=1.0)
    probabilities = torch.log_softmax(weights.log(), dim=-1).exp()[0].double()
    cdf = probabilities.cumsum(0)
    target = u * cdf[-1]
    assert bool((probabilities[tokens] > 0).all())
    assert bool((cdf[tokens] > target - 1e-6).all())
    assert bool(((cdf - probabilities)[tokens] < target + 1e-6).all())


def test_nan_gives_a_valid_token_of_a_large_vocabulary():
    logits = torch.zeros(2, 9_999)
    logits[0, 5] = float("nan")
    tokens, logprobs = draw_tokens(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), temperature=1.0, top_p=1.0)
    assert 0 <= int(tokens[0]) < 9_999
    assert logprobs.isnan().tolist() == [True, False]


def test_temperature_divides_the_logits():
    logits = [0.0, 1.0, 2.0]
    token, logprob = drawn(logits, 0.99, temperature=0.5)
    assert token == 2
    assert abs(logprob - float((torch.tensor(logits) / 0.5).log_softmax(-1)[2])) < 1e-6


def test_greedy_takes_the_lowest_of_equals_and_reports_the_softmax():
    token, logprob = drawn([1.0, 3.0, 3.0], 0.999, temperature=0.0)
    assert token == 1
    assert abs(logprob - float(torch.tensor([1.0, 3.0, 3.0]).log_softmax(-1)[1])) < 1e-6


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    # Probabilities .1 .4 .2 .3: sorted .4 .3 .2 .1; .4 + .3 reaches .6 and .69, only with .2 it reaches .71.
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist()
    for top_p, kept in ((0.05, {1}), (0.6, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        assert {drawn(logits, u / 50, top_p=top_p)[0] for u in range(50)} == kept
    assert abs(drawn(logits, 0.0, top_p=0.6)[1] - float(torch.tensor(0.4 / 0.7).log())) < 1e-6


def test_nan_logits_give_a_nan_logprob_and_a_valid_token():
    for options in ({}, {"top_p": 0.5}, {"temperature": 0.0}):
        token, logprob = drawn([0.0, float("nan"), 1.0], 0.5, **options)
        assert 0 <= token < 3
        assert logprob != logprob
