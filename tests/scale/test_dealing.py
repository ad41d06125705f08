"""Rows are dealt to ranks evenly, each to one, with as many micro-batches everywhere."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from vapo.scale.dealing import balanced, deal
from vapo.trainer.batch import Batch


def batch_of(lengths: list[int], learned: list[bool] | None = None) -> Batch:
    count, width = len(lengths), max(lengths)
    inside = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(count)
    return Batch(
        tokens=tuple(torch.zeros(length + 2, dtype=torch.long) for length in lengths),
        response_lengths=torch.tensor(lengths),
        mask=inside & torch.tensor(learned or [True] * count)[:, None],
        groups=torch.zeros(count, dtype=torch.long),
        right=zeros > 0,
        valid=zeros == 0,
        truncated=zeros > 0,
        outcomes=zeros,
        critic_outcomes=zeros,
        policy_rows=zeros == 0,
        sampled_logp=torch.zeros(count, width),
    )


def test_the_longest_goes_first_to_the_least_loaded():
    # 9 | 7; then 6 joins 7, 5 joins 9, 4 joins 13 (14 is more), 2 joins 14
    assert balanced([4, 9, 2, 7, 5, 6], 2) == [[1, 2, 4], [0, 3, 5]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 5))
def test_no_part_exceeds_the_best_one_by_more_than_a_third(sizes: list[int], parts: int):
    dealt = balanced(sizes, parts)
    assert sorted(index for part in dealt for index in part) == list(range(len(sizes)))
    # no split has a largest sum below these two
    best = max(-(-sum(sizes) // parts), max(sizes))
    ordered = sorted(sizes)
    if len(sizes) > parts:  # two of the parts + 1 largest must share a part
        best = max(best, ordered[-parts] + ordered[-parts - 1])
    assert max(sum(sizes[i] for i in part) for part in dealt) <= 4 * best / 3


@given(
    st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(1, 60),
)
def test_every_learned_row_is_in_one_micro_batch_and_ranks_have_equally_many(
    rows: list[tuple[int, bool]], ranks: int, tokens: int
):
    batch = batch_of([length for length, _ in rows], [learned for _, learned in rows])
    dealt = deal(batch, ranks, tokens)
    assert len(dealt) == ranks
    assert len({len(pieces) for pieces in dealt}) == 1
    found = sorted(row for pieces in dealt for piece in pieces for row in piece.tolist())
    assert found == [i for i, (_, learned) in enumerate(rows) if learned]
    for pieces in dealt:
        for piece in pieces:
            assert len(piece) <= 1 or sum(len(batch.tokens[row]) for row in piece.tolist()) <= tokens


def test_tokens_that_only_the_critic_reads_count():
    batch = batch_of([5, 5, 5, 5])
    longer = tuple(torch.zeros(length, dtype=torch.long) for length in (30, 10, 10, 10))
    owners = [sorted(torch.cat(pieces).tolist()) for pieces in deal(replace(batch, critic_tokens=longer), 2, 1000)]
    assert owners == [[0], [1, 2, 3]]
