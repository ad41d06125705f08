"""Guarantee 1: the gradient of one optimizer step does not depend on micro-batches, padding, packing, order or the
number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import toys
from split_network import Pair, SplitNetwork
from vapo.algo.head_ranges import width, with_range
from vapo.algo.method import (
    Algorithm,
    Anchors,
    BoundedHead,
    DualClip,
    Gae,
    HistogramHead,
    Kl,
    LinearHead,
    ProbabilityBound,
    RatioMask,
    SigmoidHead,
    TurnStarts,
)
from vapo.algo.presets import DAPO, GRPO, PPO, VAPO
from vapo.models.critic_notes import set_head
from vapo.models.networks import Critic, Policy
from vapo.trainer.batch import Batch, micro_batches, minibatches
from vapo.trainer.learn import learn
from vapo.trainer.local_network import LocalNetwork
from vapo.trainer.network import Network
from vapo.trainer.objectives import CriticObjective, PolicyObjective

EVERYTHING = replace(
    VAPO, clip=DualClip(low=0.2, high=0.28, c=3.0), kl=Kl(coef=0.5), credit=replace(VAPO.credit, value_clip=0.2)
)


def with_head(head, **changes) -> Algorithm:
    """VAPO with another head, its range filled in, and other changes of the credit."""
    return replace(VAPO, credit=replace(VAPO.credit, head=with_range(head, -1.0, 1.0), **changes))


def batch_of(lengths: list[int], seed: int = 0) -> Batch:
    """Random numbers in every field; prompts of 3 tokens; the second and the last response are right."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]

    def noise(scale: float) -> Tensor:
        return torch.where(mask, scale * torch.randn(rows, width, generator=generator), 0.0)

    right = torch.zeros(rows, dtype=torch.bool)
    right[[1, -1]] = True
    return Batch(
        tokens=tuple(torch.randint(2, 16, (3 + n,), generator=generator) for n in lengths),
        response_lengths=torch.tensor(lengths),
        mask=mask,
        groups=torch.arange(rows) // 2,
        right=right,
        valid=torch.ones(rows, dtype=torch.bool),
        truncated=torch.zeros(rows, dtype=torch.bool),
        outcomes=right.float(),
        critic_outcomes=right.float(),
        policy_rows=torch.ones_like(right),
        sampled_logp=noise(1.0) - 3,
        old_logp=noise(0.2) - 2.8,
        ref_logp=noise(0.2) - 2.8,
        old_values=noise(1.0),
        advantages=noise(1.0),
        returns=noise(0.3).clamp(-1, 1),
        critic_weights=torch.rand(rows, generator=generator) + 0.5,
        sampler_weights=torch.where(mask, torch.rand(rows, width, generator=generator), 1.0),
    )


LENGTHS = [2, 11, 5, 17, 1, 8, 30, 3]


def local(kind: str, algorithm: Algorithm, layout: str = "packed") -> LocalNetwork:
    if kind == "policy":
        policy = Policy(toys.tiny_llama(), layout)
        return LocalNetwork(kind, policy, objective=PolicyObjective(policy, algorithm))
    from transformers import LlamaForTokenClassification

    torch.manual_seed(0)
    config = toys.tiny_llama().config
    assert isinstance(algorithm.credit, Gae)
    head = algorithm.credit.head
    config.num_labels = width(head)
    model = LlamaForTokenClassification(config).eval()
    set_head(model, head)
    critic = Critic(model, layout, head=head)
    return LocalNetwork(kind, critic, objective=CriticObjective(critic, algorithm.credit))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.close()


@pytest.fixture(params=["one process", "two processes"])
def processes(request) -> Pair | None:
    return request.getfixturevalue("pair") if request.param == "two processes" else None


def gradient(
    kind: str,
    batch: Batch,
    *,
    tokens: int,
    layout: str = "packed",
    algorithm: Algorithm,
    processes: Pair | None = None,
) -> Tensor:
    build = partial(local, kind, algorithm, layout)
    network: Network = SplitNetwork(processes, build) if processes else build()
    network.accumulate(batch, micro_batch_tokens=tokens)
    return torch.cat([p.grad.flatten() for p in network.parameters if p.grad is not None])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


CASES = [
    ("policy", PPO),
    ("policy", VAPO),
    ("policy", GRPO),
    ("policy", DAPO),
    ("policy", EVERYTHING),
    ("critic", VAPO),
    ("critic", EVERYTHING),
    ("critic", replace(VAPO, credit=replace(VAPO.credit, critic_reduction="sequence"))),
    ("policy", replace(VAPO, clip=RatioMask(low=0.7, high=6.0))),
    ("policy", replace(VAPO, clip=ProbabilityBound(eps=0.2))),
    ("critic", with_head(BoundedHead())),
    ("critic", with_head(SigmoidHead())),
    ("critic", with_head(HistogramHead(bins=11))),
    ("critic", with_head(LinearHead(), value_tokens=Anchors((0.3, 0.6, 0.9)))),
    ("critic", with_head(LinearHead(), value_tokens=TurnStarts(), critic_reduction="sequence")),
]


@pytest.mark.parametrize("clip", [RatioMask(low=0.7, high=6.0), ProbabilityBound(eps=0.2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_trust_region_around_the_sampler_takes_no_step_from_its_bad_numbers(clip, value: float):
    batch = batch_of(LENGTHS)
    row, column = batch.mask.nonzero()[0].tolist()
    sampled = batch.sampled_logp.clone()
    sampled[row, column] = value
    network = local("policy", replace(VAPO, clip=clip), "packed")
    network.accumulate(replace(batch, sampled_logp=sampled), micro_batch_tokens=10**6)
    assert not network.step(lr=1e-3).taken
    network.accumulate(batch, micro_batch_tokens=10**6)
    assert network.step(lr=1e-3).taken


@pytest.mark.parametrize(("kind", "algorithm"), CASES)
def test_the_gradient_is_the_same_for_any_micro_batch_size_and_layout(
    kind: str, algorithm: Algorithm, processes: Pair | None
):
    # pitfalls 3 and 5: a loss normalised per micro-batch grows with their number
    batch = batch_of(LENGTHS)
    whole = gradient(kind, batch, tokens=10**6, algorithm=algorithm)
    assert float(whole.norm()) > 0
    for tokens in (1, 24, 60):
        for layout in ("packed", "padded"):
            split = gradient(kind, batch, tokens=tokens, layout=layout, algorithm=algorithm, processes=processes)
            assert distance(split, whole) < 1e-5, (tokens, layout)


@pytest.mark.parametrize(("kind", "algorithm"), CASES)
def test_the_gradient_does_not_depend_on_the_order_of_the_rows(kind: str, algorithm: Algorithm, processes: Pair | None):
    batch = batch_of(LENGTHS)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = gradient(kind, batch.select(order), tokens=40, algorithm=algorithm, processes=processes)
    assert distance(shuffled, gradient(kind, batch, tokens=40, algorithm=algorithm)) < 1e-5


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_values_at_masked_positions_change_no_gradient(kind: str, processes: Pair | None):
    # pitfalls 1 and 10: 0 * nan is nan
    batch = batch_of(LENGTHS)
    hole = batch.mask.clone()
    hole[3, 4:7] = False
    hole[5] = False
    clean = replace(batch, mask=hole)
    names = ("old_logp", "ref_logp", "old_values", "returns")
    dirty = replace(clean, **{n: torch.where(hole, getattr(batch, n), float("nan")) for n in names})
    dirty = replace(dirty, advantages=torch.where(hole, batch.advantages, 0.0))
    clean = replace(clean, advantages=dirty.advantages)
    a = gradient(kind, dirty, tokens=40, algorithm=EVERYTHING, processes=processes)
    assert torch.isfinite(a).all()
    assert torch.equal(a, gradient(kind, clean, tokens=40, algorithm=EVERYTHING, processes=processes))


POSITIVE_ONLY = replace(VAPO, positive_lm=1.0)
"""With advantages of 0: the positive-example loss alone."""


@pytest.mark.parametrize(("kind", "algorithm"), [*CASES, ("policy", POSITIVE_ONLY)])
@pytest.mark.parametrize("empty", [False, True])
def test_two_processes_that_share_the_rows_take_the_step_of_one(
    kind: str, algorithm: Algorithm, empty: bool, pair: Pair
):
    batch = batch_of([*LENGTHS, 4])  # 5 rows here, 4 there
    if algorithm is POSITIVE_ONLY:
        batch = replace(batch, advantages=torch.zeros_like(batch.mask, dtype=torch.float))
    if empty:  # the second process has nothing to learn from
        mask = batch.mask.clone()
        mask[5:] = False
        batch = replace(batch, mask=mask)
    build = partial(local, kind, algorithm)
    one, two = build(), SplitNetwork(pair, build)
    figures = one.accumulate(batch, micro_batch_tokens=40).figures
    shared = two.accumulate(batch, micro_batch_tokens=40).figures
    assert shared == pytest.approx(figures, rel=1e-5, abs=1e-6)
    for mine, theirs in zip(one.parameters, two.parameters, strict=True):
        if mine.grad is None:
            assert not theirs.grad.any()
        else:
            assert distance(theirs.grad, mine.grad) < 1e-6
    taken, shared_taken = one.step(1e-3), two.step(1e-3)
    assert taken.taken
    assert shared_taken.figures == pytest.approx(taken.figures, rel=1e-5)
    assert pair.ask("digest") == two.half.digest()  # both processes hold the same weights afterwards


def test_two_processes_score_what_one_does(pair: Pair):
    batch = batch_of([*LENGTHS, 4])
    for kind, what in (("policy", ("logp", "entropy")), ("critic", ("values", "final_values"))):
        build = partial(local, kind, VAPO)
        expected = build().score(batch, what, micro_batch_tokens=40)
        found = SplitNetwork(pair, build).score(batch, what, micro_batch_tokens=40)
        for name in what:
            torch.testing.assert_close(found[name], expected[name])


def test_a_bad_number_in_one_process_stops_the_step_in_both(pair: Pair):
    batch = batch_of(LENGTHS)
    batch = replace(batch, advantages=batch.advantages.clone())
    batch.advantages[-1, 0] = float("nan")  # a row of the second process
    network = SplitNetwork(pair, partial(local, "policy", VAPO))
    before = network.half.digest()
    network.accumulate(batch, micro_batch_tokens=40)
    assert not network.step(1e-3).taken
    assert network.half.digest() == pair.ask("digest") == before
    network.accumulate(batch_of(LENGTHS), micro_batch_tokens=40)
    assert network.step(1e-3).taken
    assert network.half.digest() == pair.ask("digest") != before


def test_the_positive_term_is_divided_by_the_right_tokens_of_the_minibatch_and_logged():
    # pitfalls 3 and 4: effective mu grew with the number of micro-batches; the term was silently inactive
    batch = batch_of(LENGTHS)
    target = PolicyObjective(Policy(toys.tiny_llama()), VAPO)
    weights = target.weights(batch)
    num_right = LENGTHS[1] + LENGTHS[-1]
    assert float(weights["positive"].max()) == pytest.approx(1 / num_right)
    logp, _ = target.policy.logp(batch.sequences, batch.width)
    expected = -(logp[1].sum() + logp[-1].sum()) / num_right
    figures = LocalNetwork("policy", target.policy, objective=target).accumulate(batch, micro_batch_tokens=20).figures
    assert float(figures["loss/positive_lm"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss = target.loss(batch, weights).loss
    without = PolicyObjective(target.policy, replace(VAPO, positive_lm=0.0)).loss(batch, weights).loss
    assert float((loss - without).detach()) == pytest.approx(0.1 * float(expected.detach()), rel=1e-4)


def test_the_logged_positive_term_does_not_count_minibatches_without_a_right_response():
    batch = batch_of(LENGTHS)
    batch = replace(batch, right=torch.arange(len(batch)) == 1)
    found = []
    for parts in (1, len(LENGTHS)):
        update = learn(
            local("policy", VAPO), batch, parts=parts, passes=1, lr=0.0,
            generator=lambda number: torch.Generator().manual_seed(number),
            attempt=lambda work, batch: work(batch, micro_batch_tokens=100),
        )  # fmt: skip
        found.append(update.figures["loss/positive_lm"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_shaping_does_not_move_a_response_out_of_the_positive_set():
    # NeMo RL takes "reward > 0": a right answer with the full overlong penalty (1 - 1 = 0) drops out
    batch = replace(batch_of(LENGTHS), outcomes=torch.zeros(len(LENGTHS)), critic_outcomes=torch.zeros(len(LENGTHS)))
    weights = PolicyObjective(Policy(toys.tiny_llama()), VAPO).weights(batch)["positive"]
    assert (weights[1, : LENGTHS[1]] > 0).all()


def test_no_right_response_means_no_positive_term():
    batch = replace(batch_of(LENGTHS), right=torch.zeros(len(LENGTHS), dtype=torch.bool))
    target = PolicyObjective(Policy(toys.tiny_llama()), VAPO)
    figures = target.loss(batch, target.weights(batch)).figures
    assert float(figures["loss/positive_lm"]) == 0.0


def test_micro_batches_hold_the_budget_and_every_row_with_a_trainable_token_once():
    batch = batch_of(LENGTHS)
    hole = batch.mask.clone()
    hole[2] = False
    parts = list(micro_batches(replace(batch, mask=hole), 30))
    assert sorted(torch.cat(parts).tolist()) == [0, 1, 3, 4, 5, 6, 7]
    for rows in parts:
        assert len(rows) == 1 or sum(len(batch.tokens[i]) for i in rows.tolist()) <= 30


def test_minibatches_share_the_rows_evenly_and_lose_none():
    parts = list(minibatches(batch_of(LENGTHS), 3, torch.Generator().manual_seed(0)))
    assert sorted(len(p) for p in parts) == [2, 3, 3]
    assert sorted(int(n) for p in parts for n in p.response_lengths) == sorted(LENGTHS)
