"""Groups of work waiting to be dealt out in pieces. Pure: no processes, no clock."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

LEAST_SHARE = 0.25
"""Of `most`: later pieces are at least that large, because an engine is slow with few samples."""


class Deck:
    """Groups, dealt out in order to `workers` that ask when they are free.

    The first deal gives everybody an equal share, and `most` items at most: an engine is fast with many samples at a
    time. What is left after it is dealt in shrinking pieces, so that all workers end at about the same time. A group is
    never split. Pieces of a lost worker come back to the front.
    """

    def __init__(self, sizes: Sequence[int], *, workers: int, most: int) -> None:
        """`sizes` are the numbers of items of the groups."""
        self._sizes, self._most = sizes, most
        self._workers = workers
        self._left = deque(range(len(sizes)))
        self._first = workers  # equal shares that are still to be dealt
        self._share = -(-sum(sizes) // workers)

    def __len__(self) -> int:
        """Groups that nobody has."""
        return len(self._left)

    def take(self) -> tuple[int, ...]:
        """The next piece: numbers of groups; empty if there are none."""
        if self._first:
            self._first -= 1
            wanted = min(self._share, self._most)
        else:
            items = sum(self._sizes[group] for group in self._left)
            wanted = min(self._most, max(-(-items // self._workers), int(LEAST_SHARE * self._most)))
        piece: list[int] = []
        count = 0
        # the group that crosses the share belongs to the piece if more than half of it is inside
        while self._left and (not piece or count + self._sizes[self._left[0]] / 2 <= wanted):
            count += self._sizes[self._left[0]]
            piece.append(self._left.popleft())
        return tuple(piece)

    def give_back(self, piece: Sequence[int]) -> None:
        """A piece whose worker was lost; its groups are dealt next."""
        self._left.extendleft(reversed(piece))


def runs(items: Sequence[object]) -> list[tuple[int, int]]:
    """(start, stop) of each run of equal neighbours.

    >>> runs("aabccc")
    [(0, 2), (2, 3), (3, 6)]
    """
    starts = [at for at in range(len(items)) if at == 0 or items[at] != items[at - 1]]
    return [*itertools.pairwise([*starts, len(items)])]
