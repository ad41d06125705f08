"""Maps for the maze: seeded mazes with loops, distances, and cells far apart."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from vapo.tasks.builtin import pick
from vapo.tasks.words import DIRECTIONS, cell_name


@dataclass(frozen=True)
class Grid:
    """One map. `steps[cell][direction]` is the neighbour's name, or None for a wall."""

    name: str
    steps: dict[str, dict[str, str | None]]


def make_grid(name: str, side: int, loops: float, seed: int) -> Grid:
    """A connected map of side x side cells: a random spanning tree plus a share `loops` of the other walls
    opened. Same arguments, same map, on every machine."""
    rng = random.Random(f"vapo-grid/{name}/{side}/{seed}")  # noqa: S311 - not for secrets
    cells = [(column, row) for row in range(side) for column in range(side)]
    opened: set[frozenset[tuple[int, int]]] = set()
    path, seen = [pick(rng, cells)], set[tuple[int, int]]()
    seen.add(path[0])
    while path:  # depth-first: long winding corridors, where the direction of the goal helps little
        fresh = [cell for cell in _beside(path[-1], side) if cell not in seen]
        if not fresh:
            path.pop()
            continue
        chosen = pick(rng, fresh)
        opened.add(frozenset((path[-1], chosen)))
        seen.add(chosen)
        path.append(chosen)
    walls = sorted(
        {tuple(sorted((cell, other))) for cell in cells for other in _beside(cell, side)}
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


def _beside(cell: tuple[int, int], side: int) -> list[tuple[int, int]]:
    column, row = cell
    around = [(column + east, row + north) for east, north in DIRECTIONS.values()]
    return [(c, r) for c, r in around if 0 <= c < side and 0 <= r < side]


def spread_out(side: int, count: int) -> tuple[str, ...]:
    """Cells far from each other in a straight line: the corners, then the middle, and so on."""
    cells = [(column, row) for column in range(side) for row in range(side)]
    chosen = cells[:1]
    while len(chosen) < count:
        chosen.append(max(cells, key=lambda cell: min(_squared(cell, other) for other in chosen)))
    return tuple(cell_name(*cell) for cell in chosen)


def _squared(one: tuple[int, int], other: tuple[int, int]) -> int:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
