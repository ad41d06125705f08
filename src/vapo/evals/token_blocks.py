"""Rows of like length in blocks of a bounded number of tokens: what a critic reads at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_blocks(lengths: Sequence[int], tokens_at_once: int) -> Iterator[list[int]]:
    """The rows' numbers, shortest first, in blocks of at most so many tokens with padding; a longer row stands alone.

    >>> list(token_blocks([5, 1, 2, 9], tokens_at_once=6))
    [[1, 2], [0], [3]]
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= tokens_at_once:
            end += 1
        yield order[start:end]
        start = end
