"""Maps for the maze task: seeded maps with loops, distances, and the choice of cells far from each other."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from vapo.tasks.builtin import pick
from vapo.tasks.words import DIRECTIONS, cell_name


@dataclass(frozen=True)
class Grid:
    """One map. `steps[cell][direction]` is the name of the neighbouring cell, or None for a wall."""

    name: str
    steps: dict[str, dict[str, str | None]]


def make_grid(name: str, side: int, loops: float, seed: int) -> Grid:
    """A connected map of side x side cells: a random spanning tree, and a share `loops` of the other walls opened.

    The same arguments give the same map on every machine.
    """
    rng = random.Random(f"vapo-grid/{name}/{side}/{seed}")  # noqa: S311 - not for secrets
    cells = [(column, row) for row in range(side) for column in range(side)]
    opened: set[frozenset[tuple[int, int]]] = set()
    path, seen = [pick(rng, cells)], set[tuple[int, int]]()
    seen.add(path[0])
    while path:  # depth-first search gives long winding corridors, in which the direction of the goal helps little
        unvisited = [cell for cell in _neighbours(path[-1], side) if cell not in seen]
        if not unvisited:
            path.pop()
            continue
        chosen = pick(rng, unvisited)
        opened.add(frozenset((path[-1], chosen)))
        seen.add(chosen)
        path.append(chosen)
    walls = sorted(
        {tuple(sorted((cell, other))) for cell in cells for other in _neighbours(cell, side)}
        - {tuple(sorted(pair)) for pair in opened}
    )
    walls.sort(key=lambda _: rng.random())
    opened |= {frozenset(pair) for pair in walls[: round(loops * len(walls))]}

    steps: dict[str, dict[str, str | None]] = {}
    for column, row in cells:
        here = (column, row)
        steps[cell_name(*here)] = {
            direction: cell_name(*there) if frozenset((here, there := (column + east, row + north))) in opened else None
            for direction, (east, north) in DIRECTIONS.items()
        }
    return Grid(name, steps)


def distances(steps: dict[str, dict[str, str | None]], goal: str) -> dict[str, int]:
    """The number of moves from each cell to the goal."""
    found, queue = {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        for neighbour in steps[cell].values():
            if neighbour is not None and neighbour not in found:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


def _neighbours(cell: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """The cells next to a cell, with or without a wall between."""
    column, row = cell
    around = [(column + east, row + north) for east, north in DIRECTIONS.values()]
    return [(c, r) for c, r in around if 0 <= c < side and 0 <= r < side]


def spread_out(side: int, count: int) -> tuple[str, ...]:
    """Cells with large straight-line distances: the corners, then the middle, and so on."""
    cells = [(column, row) for column in range(side) for row in range(side)]
    chosen = cells[:1]
    while len(chosen) < count:
        chosen.append(max(cells, key=lambda cell: min(_squared_distance(cell, other) for other in chosen)))
    return tuple(cell_name(*cell) for cell in chosen)


def _squared_distance(one: tuple[int, int], other: tuple[int, int]) -> int:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
